"""What an attack knows of each example: its inputs, its state with one row for each, and what it hands back.

No row may see another: every operation is by row. So one attack runs on a batch or on a stream whose rows are refilled
(``scheduler.py``), and finds the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hauberk.core.random import ExampleRng
from hauberk.objectives.functional import AttackLoss, Criterion, fooled
from hauberk.threat import FeasibleSet, ThreatModel, expand_to

RUN_TAGS = 100_000  # random draws of different runs never share a tag


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found and saw; everything here came from passes the attack made anyway.

    Attributes:
        x_adv: (B, ...), inside the threat model, detached.
        success: (B,) bool, whether the model misclassifies ``x_adv`` (and so, as the best point ever visited is kept
            unless the last was asked for, any point visited). If the last was not looked at: the one before it.
        kappa: (B,) int64, how many of the K iterates ``x⁰ … x^{K-1}`` were classified right; GAIRAT's κ. Of the first run,
            or, where an example's attack ends with a success, of the run that ended it.
        first_success: (B,) int64, index of the first misclassified iterate of that run (0 is the start), -1 if none.
        steps_taken: (B,) int64, in that run: K, or fewer where the example stopped.
        logits: (B, C) at ``x_adv``, detached, or what else the model returns; None where the attack was told not to look there.
        logits_lps: (B, C) at the first misclassified iterate (least PGD steps), or at the last one seen where there is none.
        clean_logits: (B, C) of the clean inputs in the attack's mode, where the attack looked at them; otherwise None.
        forwards: forward passes of the whole batch; a fraction where finished examples were left out.
        backwards: backward passes of the whole batch, to the input only, likewise.
        steps: K.
    """

    x_adv: Tensor
    success: Tensor
    kappa: Tensor
    first_success: Tensor
    steps_taken: Tensor
    logits: Tensor | None
    logits_lps: Tensor
    clean_logits: Tensor | None
    forwards: float
    backwards: float
    steps: int

    @classmethod
    def counted_later(cls, count: Callable[[], dict[str, Any]], **known: Any) -> "AttackResult":
        """Return a result that counts what is not ``known`` when it is first asked for: training seldom looks at all of it."""
        made = cls.__new__(cls)
        vars(made).update(known, _count=count)
        return made

    def __repr__(self) -> str:
        passes = f"{self.forwards:g} forwards, {self.backwards:g} backwards"
        return f"AttackResult({len(self.success)} examples, {int(self.success.sum())} misclassified, {passes})"

    def __getattr__(self, name: str) -> Any:
        count = vars(self).get("_count")
        if count is None or name not in _COUNTED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        vars(self).update(count(), _count=None)
        return vars(self)[name]

    @property
    def lps(self) -> Tensor:
        """Least PGD steps, (B,) int64: index of the first misclassified iterate, or the steps taken where there is none."""
        return torch.where(self.first_success < 0, self.steps_taken, self.first_success)


_COUNTED = ("success", "kappa", "first_success", "steps_taken", "logits_lps")


@dataclass
class AttackInputs:
    """Examples about to be attacked.

    Attributes:
        feasible: where their adversarial examples must stay; ``feasible.x`` are the clean inputs, (b, ...).
        y: labels, (b,); of a task with a criterion and a loss of its own, (b, ...).
        clean_logits: (b, C) of the clean inputs; None where the attack does not need them.
        run: which of the attack's runs (targets, restarts) each is at, (b,) int64.
        rng: random draws, keyed by example.
        target: the class that each example is to be taken for, (b,); None to aim at the most likely wrong ones in turn.
        given: what the loss is to compare with, (b, C); None for the logits of the clean inputs.
        in_step: whether these are a batch whose rows go through the attack together, and not rows that others will fill.
        criterion: which outputs are mistakes.
    """

    feasible: FeasibleSet
    y: Tensor
    clean_logits: Tensor | None
    run: Tensor
    rng: ExampleRng
    target: Tensor | None = None
    given: Tensor | None = None
    in_step: bool = False
    criterion: Criterion = fooled

    @property
    def tag(self) -> Tensor:
        """First tag of the run's random draws, (b,)."""
        return self.run * RUN_TAGS

    def reference(self, loss: AttackLoss, max_targets: int) -> Tensor:
        """What the loss compares with: clean logits, what is given, targets, or (as it does not look at it) the labels."""
        if loss.reference in ("clean", "given"):
            compared = self.clean_logits if self.given is None else self.given
            assert compared is not None  # attack_batch has seen to it
            return compared if loss.prepare is None else loss.prepare(compared)
        if loss.reference == "none":
            return self.y
        if self.target is not None:
            return self.target
        assert self.clean_logits is not None
        logits = self.clean_logits[:, : self.clean_logits.shape[1] - loss.extra_outputs]
        others = logits.scatter(1, self.y[:, None], torch.inf)  # the label comes first, whatever the model thinks
        ranked = others.argsort(dim=1, descending=True, stable=True)
        turn = self.run % count_targets(loss, max_targets, self.clean_logits.shape[1])
        return ranked.gather(1, 1 + turn[:, None]).squeeze(1)


def count_targets(loss: AttackLoss, max_targets: int, n_classes: int) -> int:
    """How many runs the targets make: 1 for a loss without, otherwise at most one for each wrong class."""
    return 1 if loss.reference != "target" else min(max_targets, n_classes - 1 - loss.extra_outputs)


@dataclass
class AttackState:
    """What every attack keeps of each example; attacks add fields of their own.

    Attributes:
        feasible, y, rng, criterion: as in :class:`AttackInputs`.
        tag: first tag of this run's random draws, (B,) int64.
        step: how many looks there have been, (B,) int64.
        best: best point so far, (B, ...): misclassified before not, then the larger loss, a loss that is NaN last.
        best_logits: (B, C) there; None before the first look.
        best_loss: (B,) there.
        found: (B,) bool, whether it is misclassified.
        found_at: (B,) int64, the step of the first misclassified point, -1 for none.
    """

    feasible: FeasibleSet
    y: Tensor
    rng: ExampleRng
    criterion: Criterion
    tag: Tensor
    step: Tensor
    best: Tensor
    best_logits: Tensor | None
    best_loss: Tensor
    found: Tensor
    found_at: Tensor

    def offer(self, point: Tensor, logits: Tensor, loss: Tensor, wrong: Tensor, allowed: Tensor | None = None) -> None:
        """Keep what a look showed, where it is better than what is kept and ``allowed`` (B,); and count the look."""
        loss = torch.where(loss.isnan(), -torch.inf, loss).to(self.best_loss.dtype)
        better = is_better(wrong, loss, self.found, self.best_loss)
        if allowed is not None:
            better, wrong = better & allowed, wrong & allowed
        self.best = replace_rows(better, point, self.best)
        self.best_logits = logits.clone() if self.best_logits is None else replace_rows(better, logits, self.best_logits)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.found_at = torch.where(wrong & (self.found_at < 0), self.step, self.found_at)
        self.found = self.found | wrong
        self.step = self.step + 1

    def observe(self, point: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """Note a look at points inside the threat model; returns which are misclassified, (B,)."""
        wrong = self.criterion(logits, self.y)
        self.offer(point, logits, loss, wrong)
        return wrong

    def reject(self, rows: Tensor) -> None:
        """Forget what was found for some rows (b,), because it did not hold when checked; they go on."""
        self.found = self.found.index_fill(0, rows, False)
        self.found_at = self.found_at.index_fill(0, rows, -1)
        self.best_loss = self.best_loss.index_fill(0, rows, -torch.inf)

    def report(self) -> dict[str, Any]:
        """Return, after a look, what an :class:`AttackResult` says of each example, and the loss there."""
        assert self.best_logits is not None
        taken = self.step - 1
        return {
            "x_adv": self.best,
            "success": self.found,
            "loss": self.best_loss,
            "logits": self.best_logits,
            "logits_lps": self.best_logits,
            "kappa": torch.where(self.found_at < 0, taken, self.found_at),
            "first_success": self.found_at,
            "steps_taken": taken,
        }


def is_better(wrong: Tensor, loss: Tensor, best_wrong: Tensor, best_loss: Tensor) -> Tensor:
    """The one rule for the best point: misclassified before not, then the larger loss. All (B,)."""
    return (wrong & ~best_wrong) | ((wrong == best_wrong) & (loss > best_loss))


def initial_state(inputs: AttackInputs, replaces_best: bool = True) -> dict[str, Any]:
    """Return the fields of :class:`AttackState` before the first look; on a CPU the best point is replaced row by row."""
    x, y, clean, none = inputs.feasible.x, inputs.y, inputs.clean_logits, torch.zeros_like(inputs.run)
    dtype = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    return {
        "feasible": inputs.feasible,
        "y": y,
        "rng": inputs.rng,
        "criterion": inputs.criterion,
        "tag": inputs.tag,
        "step": none,
        "best": x.clone() if replaces_best else x,
        "best_logits": None if clean is None else clean.clone(),
        "best_loss": torch.full((len(y),), -torch.inf, dtype=dtype, device=x.device),
        "found": torch.zeros_like(none, dtype=torch.bool),
        "found_at": torch.full_like(none, -1),
    }


State = TypeVar("State", bound=AttackState)
Rows = TypeVar("Rows", bound=AttackInputs | AttackState)


def select(rows: Rows, index: Tensor) -> Rows:
    """Keep some rows of a state, or some of the inputs. index: (b,) int64."""

    def rows_of(value: Any) -> Any:
        if value is None or isinstance(value, bool) or callable(value):
            return value  # the same for all rows
        return value[index] if isinstance(value, Tensor) else value.index_select(index)

    return type(rows)(**{f.name: rows_of(getattr(rows, f.name)) for f in fields(rows)})


def scatter(state: State, places: Tensor, new: State) -> None:
    """Replace the rows at ``places`` (b,) by ``new`` ones (b rows)."""
    for f in fields(state):
        old, value = getattr(state, f.name), getattr(new, f.name)
        if isinstance(old, Tensor):
            setattr(state, f.name, old.index_copy(0, places, value))
        elif old is not None and not callable(old):
            setattr(state, f.name, old.index_copy(places, value))


def state_dict(state: AttackState) -> dict[str, Tensor]:
    """Return all there is to know about a state, as tensors."""
    values = {f.name: getattr(state, f.name) for f in fields(state)}
    feasible, rng = values.pop("feasible"), values.pop("rng")
    return {"x": feasible.x, "rng": rng.keys, **{name: value for name, value in values.items() if isinstance(value, Tensor)}}


def from_state_dict(like: State, saved: dict[str, Tensor], threat: ThreatModel) -> State:
    """Make a state of the same kind as ``like``, on its device, from what :func:`state_dict` returned."""
    values: dict[str, Any] = {name: value.to(like.y.device) for name, value in saved.items()}
    feasible = threat.around(values.pop("x"))
    shared = {f.name: value for f in fields(like) if (value := getattr(like, f.name)) is None or callable(value)}
    return type(like)(**{**shared, "feasible": feasible, "rng": ExampleRng.of_keys(values.pop("rng")), **values})


def where_rows(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Choose per example. rows: (B,) bool; one, other: (B, ...)."""
    return torch.where(expand_to(rows, one), one, other)


def replace_rows(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Choose as :func:`where_rows`; on a CPU in place of ``other``, because few rows change there."""
    one = one.to(other.dtype)
    if other.device.type != "cpu":
        return where_rows(rows, one, other)
    index = rows.nonzero().squeeze(1)
    return other.index_copy_(0, index, one.index_select(0, index)) if len(index) else other


class Outcome:
    """What became of each example of a batch, over all runs.

    Args:
        inputs: of the attack.
        wrong: (B,) which examples are misclassified without it and are not attacked, for an attack that stops at a success;
            None for one that takes all examples through all runs.
        keeps_best: whether the best point of all runs counts, or the last.
    """

    def __init__(self, inputs: AttackInputs, wrong: Tensor | None, keeps_best: bool):
        self.inputs, self.stops_at_success, self.keeps_best = inputs, wrong is not None, keeps_best
        self.values: dict[str, Any] = {}
        if wrong is not None:
            clean = inputs.clean_logits
            assert clean is not None  # what is wrong without an attack was seen there
            none = torch.zeros_like(inputs.run)
            self.values = {
                "x_adv": inputs.feasible.x,
                "success": wrong,
                "loss": torch.full(none.shape, -torch.inf, device=none.device),
                "logits": clean,
                "logits_lps": clean,
                "kappa": none,
                "first_success": torch.where(wrong, 0, -1),
                "steps_taken": none,
            }

    def standing(self) -> Tensor | None:
        """Places of the examples that go on, (b,); None for all."""
        return (~self.values["success"]).nonzero().squeeze(1) if self.stops_at_success else None

    def inputs_of(self, index: Tensor | None, run: int) -> AttackInputs:
        """The inputs of some of the examples for one run."""
        inputs = replace(self.inputs, run=torch.full_like(self.inputs.run, run)) if run else self.inputs
        return inputs if index is None else select(inputs, index)

    def take(self, state: AttackState, index: Tensor | None, run: int) -> None:
        """Note what a run has found so far for the examples at ``index`` (b,), or for all."""
        found = state.report()
        if not self.values:
            self.values = found
            return
        if run:
            before = {key: value if index is None else value[index] for key, value in self.values.items()}
            if self.keeps_best:
                best_before = before["success"], before["loss"].to(state.best_loss.dtype)
                better = is_better(state.found, state.best_loss, *best_before)
                for key in ("x_adv", "success", "loss", "logits"):
                    found[key] = where_rows(better, found[key], before[key].to(found[key].dtype))
            if not self.stops_at_success:  # counts are those of the first run
                found |= {key: before[key] for key in ("logits_lps", "kappa", "first_success", "steps_taken")}
        for key, value in found.items():
            whole = self.values[key]
            self.values[key] = value if index is None else whole.to(value.dtype).index_copy(0, index, value)

    def result(self, forwards: int, backwards: int, evaluate_last: bool, steps: int) -> AttackResult:
        """Return what there is to say; passes are counted in examples."""
        values, n = dict(self.values), len(self.inputs.y)
        del values["loss"]
        if not evaluate_last:
            values["logits"] = None
        known = {
            **values,
            "clean_logits": self.inputs.clean_logits,
            "forwards": _batches(forwards, n),
            "backwards": _batches(backwards, n),
            "steps": steps,
        }
        count = known.pop("count", None)
        return AttackResult(**known) if count is None else AttackResult.counted_later(count, **known)


def _batches(examples: int, size: int) -> float:
    """Passes of the whole batch, from a count in examples; a whole number where it is one."""
    return examples // size if examples % size == 0 else examples / size
