"""A study: an experiment of a source with its claim, run and judged."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt

from matplotlib.figure import Figure

from hauberk.core.numerics import float32_mode
from hauberk.evaluation.diagnostics.results import hardly_beats_chance
from hauberk.experiments.studies.context import StudyContext
from hauberk.experiments.studies.masks import strong_words
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import AGREES, DISAGREES, UNTOLD


@dataclass(frozen=True)
class Study:
    """An experiment of a source, on any data.

    Attributes:
        name: of the study.
        claim: what its source says, and which it is.
        experiment: trains, attacks, and tests the sentences of the claim.
        draw: makes the picture of a result.
    """

    name: str
    claim: str
    experiment: Callable[[StudyContext], StudyResult]
    draw: Callable[[StudyResult], Figure]

    def picture(self, result: StudyResult) -> Figure:
        """Return the picture of a result, with its caption."""
        return result.picture(self.draw)

    def run(self, context: StudyContext) -> StudyResult:
        """Run it, and judge: never by networks that are no better than chance, nor by those of a single seed.

        What it measures is in true float32; trainings are in the precision of their settings.

        Args:
            context: data, network, sizes, number of seeds.

        Raises:
            UserError: as :func:`hauberk.train`, and if it is asked to stop.
        """
        watched = replace(context, right={})
        with float32_mode("fp32"):
            result = judged(self.experiment(watched), watched)
        about = f"{context}, {result.about or f'{len(watched.examples()[1]):,} test examples'}"
        return replace(result, about=about, study=self.name, claim=self.claim, strong=strong_words(watched.classes))


def judged(result: StudyResult, context: StudyContext) -> StudyResult:
    """Return a result with its verdict: that of its sentences, left open where they rest on networks that have learnt nothing.

    A network has learnt something if it is right at least twice as often as guessing, of two classes more often, and more often
    than naming the most frequent class by two standard errors of the test examples.
    """
    y = context.examples()[1]
    classes = context.classes
    constant = float(y.bincount().max()) / len(y)
    poor: dict[str, float] = {}
    for name, masks in context.right.items():
        for clean in (float(mask.double().mean()) for mask in masks):
            error = sqrt(clean * (1 - clean) / len(y))
            if hardly_beats_chance(clean, classes) or clean - 2 * error <= max(constant, 1 / classes):
                poor[name] = min(clean, poor.get(name, 1.0))
    verdicts = [one["verdict"] for one in result.sentences]
    verdict = DISAGREES if DISAGREES in verdicts else AGREES if verdicts and set(verdicts) == {AGREES} else UNTOLD
    if poor:
        least = min(poor, key=lambda name: poor[name])
        reason = (
            f"{len(poor)} of the {len(context.right)} networks it rests on are no better than chance ({least}: "
            f"{100 * poor[least]:.0f} % of {classes} classes); train longer, or look at more test examples. Measured: "
        )
        open_sentences = [one | {"verdict": UNTOLD} for one in result.sentences]
        return replace(result, verdict=UNTOLD, found=reason + result.found, sentences=open_sentences)
    if context.trials == 1:
        return replace(result, verdict=verdict, found="one seed tells nothing of others. Measured: " + result.found)
    return replace(result, verdict=verdict)
