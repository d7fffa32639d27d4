"""Transfer: adversarial examples crafted on a surrogate, tried on the model (the black-box tables of TRADES and MART)."""

from dataclasses import dataclass

from torch import Tensor, nn

from hauberk.attacks.ascent import ascend
from hauberk.attacks.model_queries import ModelQueries
from hauberk.attacks.result import AttackResult
from hauberk.attacks.rows import Clock, Rows, Task, fresh
from hauberk.attacks.run import run_attack
from hauberk.attacks.steps import Ascent
from hauberk.core.random import ExampleRng
from hauberk.objectives.functional import fooled, make_loss
from hauberk.threat import ThreatModel


@dataclass(frozen=True, eq=False)
class Transfer:
    """An ascent on a surrogate, whose last point is tried on the model under test, at one pass of that.

    Attributes:
        settings: of the ascent on the surrogate.
        surrogate: a model of the same inputs and classes, set by the evaluator.
        threat: likewise.
        evading: the last output of the model under test is a class of adversarial inputs.
    """

    settings: Ascent
    surrogate: nn.Module | None = None
    threat: ThreatModel | None = None
    evading: bool = False
    stride = 1
    length = 1

    def turns(self, classes: int) -> int:
        """One."""
        return 1

    def begin(self, task: Task) -> Rows:
        """Set up."""
        return Rows(*fresh(task))

    def advance(self, rows: Rows, passes: ModelQueries, clock: Clock) -> None:
        """Craft on the surrogate, look at the model."""
        assert self.surrogate is not None  # set before it runs
        assert self.threat is not None
        crafted = ascend(
            self.surrogate, rows.region.x, rows.y, self.threat, self.settings, keep="last-unseen", seed=rows.rng, trusted=True
        )
        logits = passes.look(crafted.x_adv)
        loss = make_loss("cw")(logits, rows.y, None).to(crafted.x_adv.dtype)
        rows.offer(crafted.x_adv, logits, loss, fooled(logits, rows.y, self.evading))


def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    surrogate: nn.Module,
    settings: Ascent | None = None,
    seed: int | ExampleRng = 0,
) -> AttackResult:
    """Craft adversarial examples on a surrogate and try them on the model.

    Args:
        model: under test; only looked at.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,).
        threat: ball and box.
        surrogate: another classifier of the same inputs; unchanged afterwards.
        settings: of the ascent on the surrogate; by default PGD-20 with steps of ε/10, as TRADES and MART.
        seed: of the random starts; an integer, or noise keyed by example.

    Returns:
        AttackResult of the model under test; its passes are those of the model under test.
    """
    settings = settings or Ascent(20, "eps/10")
    return run_attack(Transfer(settings, surrogate, threat), model, x, y, threat, seed=seed)
