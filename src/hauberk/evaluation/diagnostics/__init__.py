"""Diagnostics: whether a robustness number can be believed. Functions in a table, with their thresholds as data."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any, Literal, TypeAlias

from hauberk.core.arguments import check_callable, check_fields
from hauberk.core.errors import unknown_name
from hauberk.evaluation.diagnostics import active, gradients, results
from hauberk.evaluation.finding import Diagnostic, Finding, Verdict

Evidence: TypeAlias = Literal["model", "sample", "verdicts"]


@dataclass(frozen=True)
class DiagnosticSpec:
    """A row of the table of diagnostics.

    Attributes:
        name: of the diagnostic.
        function: takes the evidence and returns a list of :class:`Finding`, empty where it does not apply.
        evidence: "model": the function is called before the attacks, with a ``CleanInputs``; "sample": likewise, with a
            ``Sample`` of a few examples that are right; "verdicts": it is called at the end, with the ``Verdicts``.
        warning: a value above this is a warning.
        invalid: a value above this makes the robust accuracy invalid.
        advice: what to do where it is not ok.
    """

    name: str
    function: Callable[[Any], list[Finding]]
    evidence: Evidence
    warning: float = inf
    invalid: float = inf
    advice: str = ""

    def __post_init__(self) -> None:
        check_fields(self, finite=False)
        check_callable("function", self.function, "evidence")

    def run(self, evidence: Any) -> list[Diagnostic]:
        """Call the function, and compare what it found with the thresholds."""
        done = []
        for found in self.function(evidence):
            value = inf if isnan(found.value) else found.value  # no number is the worst there is
            verdict: Verdict = "invalid" if value > self.invalid else "warning" if value > self.warning else "ok"
            advice = "" if verdict == "ok" else self.advice
            done.append(Diagnostic(found.name or self.name, found.measured, verdict, advice))
        return done


def run_diagnostics(specs: Iterable[DiagnosticSpec], kind: Evidence, evidence: Any) -> list[Diagnostic]:
    """Run those that need this kind of evidence, which is a ``CleanInputs``, ``Sample`` or ``Verdicts``."""
    return [found for spec in specs if spec.evidence == kind for found in spec.run(evidence)]


def find_diagnostics(diagnostics: str | Sequence[str | DiagnosticSpec]) -> list[DiagnosticSpec]:
    """Return "all" of ``DIAGNOSTICS``, the "cheap" ones, which run no attack of their own, or those given.

    Raises:
        UserError: for unknown names.
    """
    if isinstance(diagnostics, str):
        if diagnostics not in ("all", "cheap"):
            raise unknown_name("choice of diagnostics", diagnostics, ("all", "cheap"))
        return [spec for spec in DIAGNOSTICS.values() if diagnostics == "all" or spec.evidence != "sample"]
    for name in diagnostics:
        if isinstance(name, str) and name not in DIAGNOSTICS:
            raise unknown_name("diagnostic", name, DIAGNOSTICS)
    return [DIAGNOSTICS[spec] if isinstance(spec, str) else spec for spec in diagnostics]


# By the evidence: name, function, "warning" above, "invalid" above, advice.
_TABLE: dict[Evidence, tuple[tuple[str, Callable[[Any], list[Finding]], float, float, str], ...]] = {
    "model": (
        ("logits", results.probabilities, inf, 0,
         "return logits (remove the softmax): gradients vanish where probabilities saturate"),
        ("deterministic", results.randomness, inf, results.SPREAD,
         "the model is random: this number is too high; evaluate with suite='rand', which averages over passes"),
        ("averaging-is-needed", results.needless_averaging, 0, inf,
         "the model is deterministic: suite 'standard' is stronger, at a fraction of the cost"),
        ("evaluation-mode", results.training_modules, 0, inf,
         "a module ignores eval(): its batch statistics or dropout make the number depend on chance"),
        ("side-effects", results.side_effects, inf, 0,
         "the model changes while it is looked at, so later answers depend on earlier questions"),
        ("no-optimisation-in-forward", results.gradients_in_forward, 0, inf,
         "the model optimises while it predicts: gradients through that are unreliable; attack it with one made for it"),
        ("independent-of-the-batch", results.batch_dependence, inf, 0.01,  # rounding stays well below, statistics above
         "predictions depend on what else is in the batch: use running statistics"),
        ("columns-can-change", results.changeable_columns, 0, 1,
         "the number says nothing about changes of columns that cannot change: give those that should an eps of their own, "
         'the others change = "none"'),
    ),
    "sample": (
        ("gradients", gradients.zero_gradients, inf, gradients.NO_GRADIENT,
         "gradients do not reach the input (rounding, detach, saturation): attacks with gradients prove nothing here; "
         "give a differentiable stand-in (bpda=), or attack without gradients"),
        ("gradients-of-cross-entropy", gradients.saturation, gradients.NO_GRADIENT, inf,
         "cross-entropy is saturated: attacks that maximise it prove nothing here; believe those on the margin"),
        ("gradients-tell-the-truth", gradients.false_gradients, 0.4, 0.6,  # honest networks stay below 0.3, others pass 0.7
         "the loss is rough or its gradient is not its own (discontinuous activations, shattered gradients): PGD is misled; "
         "smooth it, or attack without gradients"),
        ("large-eps-breaks-everything", gradients.large_eps, 0.1, 0.5,
         "with that ε an adversarial example exists for certain: the attack cannot find it, so gradients are masked"),
        ("larger-eps-breaks-more", gradients.larger_eps, 0.1, inf,
         "the attack gets worse with more room: its gradients mislead it"),
        ("gradients-beat-chance", gradients.random_points, 2, inf,
         "random points find more than gradients do: gradients are masked"),
        ("gradients-beat-square", gradients.black_box, 0, 0.1,
         "a search without gradients finds more than gradients do: gradients are masked; run AutoAttack, and believe Square"),
        ("rounding-breaks-no-more", gradients.rounded_points, 0, 0.1,
         "the model tells attacked images from others by their grey values; attack it with points rounded to those"),
        ("attacks-find-planted-examples", active.planted_examples, 0.25, 0.5,  # honest networks stay below 0.2, others pass 0.8
         "the attacks miss adversarial examples that are there by construction: they prove nothing on this model; attack it "
         "with one made for it (bpda=), or without gradients"),
        ("optimisation-is-finished", gradients.more_steps, 0.15, inf,
         "the search has not converged: attacks of few steps say little here; look at those with the most"),
        ("one-start-is-enough", gradients.another_start, 0.15, inf,
         "the loss has many bad maxima: use restarts (pgd-plus), targets (apgd-t), and attacks without gradients"),
        ("any-loss-will-do", gradients.another_loss, 0.15, inf,
         "robust to cross-entropy attacks only; believe attacks on the margin and AutoAttack"),
    ),
    "verdicts": (
        ("clean-accuracy", results.clean_accuracy, inf, 0,
         "the model hardly beats chance: check labels, input range and normalisation"),
        ("more-than-the-largest-class", results.largest_class, 0, inf,
         "one answer for every input has as many right, and no attack changes it: look at by_class, give costs= where classes "
         "are unequal, train with class weights, or for longer"),
        ("unverified", results.unverified, 0.01, inf,
         "predictions flip with rounding, or between attack and check; evaluate with precision 'model' on one device"),
        ("finite-logits", results.nonfinite_logits, 0, inf,
         "they count as broken, because that is no answer; find the layer that overflows or divides by 0, "
         "near which gradients mislead attacks, too"),
        ("attacks-use-gradients", results.no_gradients, 0, inf,
         "what stands is an upper bound, and a weaker one than attacks by gradients give: an attack that sees inside the model "
         "may break much more; craft on a differentiable model (surrogate=), or give a stand-in (bpda=)"),
        ("iterative-beats-single-step", results.single_step, 0.005, inf,
         "gradients mislead the iterative attack (masking): use more restarts, and attacks without gradients"),
        ("cross-entropy-to-margin-gap", results.margin_gap, 0.03, inf,  # robust models lose one or two points, GAIRAT 15
         "robust to cross-entropy attacks only; do not report the PGD number, run AutoAttack"),
        ("more-steps-help", results.steps_gain, 0.02, inf,
         "the attack has not converged: use more steps and restarts"),
        ("pgd-to-autoattack-gap", results.autoattack_gap, 0.10, inf,  # robust models lose up to five points or so, GAIRAT 21
         "the PGD number is an illusion; report AutoAttack"),
        ("square-beats-gradients", results.autoattack_without_gradients, 0.002, inf,  # AutoAttack's own flag
         "gradients are masked in part: an attack made for this model may break more"),
        ("ATTACK-beats-gradients", results.others_without_gradients, 0.005, inf,
         "gradients are masked in part: an attack made for this model may break more"),
        ("robust-rows-stay-apart", results.robust_rows_that_meet, 0, 0.05,
         "no classifier is right for both, so the attacks miss adversarial examples that are there for certain, and the number "
         "is too high by so much at least: run suite 'plus', or attacks of your own with more restarts"),
    ),
}  # fmt: skip
DIAGNOSTICS = {
    name: DiagnosticSpec(name, function, evidence, warning, invalid, advice)
    for evidence, rows in _TABLE.items()
    for name, function, warning, invalid, advice in rows
}
