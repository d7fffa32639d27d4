"""AutoAttack on a batch (Croce and Hein 2020)."""

from dataclasses import replace

from torch import Tensor, nn

from hauberk.attacks.base import attack_batch, run_attack
from hauberk.attacks.model.bpda import StandInLike, with_stand_in
from hauberk.attacks.model.check_model import check_module
from hauberk.attacks.presets import PRESETS
from hauberk.attacks.state import AttackResult
from hauberk.attacks.suites import SUITES
from hauberk.core.arguments import checked
from hauberk.core.random import ExampleRng, batch_rng
from hauberk.threat import ThreatModel
from hauberk.threat.batch import check_batch


@checked
def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int | ExampleRng = 0,
    bpda: StandInLike | None = None,
) -> AttackResult:
    """Run AutoAttack (Croce and Hein 2020), standard version: APGD-CE, then APGD-T, FAB-T and Square, each on what stands.

    With fewer than 4 classes targeted APGD maximises ``z_t - z_y``, because targeted DLR is not defined.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,), integers.
        threat: ball and box.
        seed: of all random draws; an integer, or an ``ExampleRng`` keyed by example.
        bpda: as in :func:`hauberk.attacks.run_attack`.

    Returns:
        AttackResult: ``x_adv`` is the point of the attack that succeeded, otherwise of APGD-CE; so are ``kappa`` and the like.

    Raises:
        UserError: for models and inputs that do not fit together.
    """
    y = check_batch(x, y)
    check_module(model)
    model = with_stand_in(model, bpda)
    rng = batch_rng(seed, x)
    first, *others = SUITES["standard"].for_threat(threat).stages
    found = run_attack(PRESETS[first].adapted(threat, 10)[0], model, x, y, threat, seed=rng)
    assert found.clean_logits is not None  # it stops at a success
    classes = found.clean_logits.shape[1]
    for name in others:
        standing = (~found.success).nonzero().squeeze(1)
        if len(standing) == 0:
            break
        attack, _ = PRESETS[name].adapted(threat, classes)
        more = attack_batch(attack, model, x[standing], y[standing], threat, seed=rng.index_select(standing))
        found = _merge(found, more, standing)
    return found


def _merge(found: AttackResult, more: AttackResult, rows: Tensor) -> AttackResult:
    """Put what ``more`` found for some rows in place of what was found before."""
    broken = more.success
    index = rows[broken]
    fields = ("x_adv", "success", "kappa", "first_success", "steps_taken", "logits", "logits_lps")
    values = {name: getattr(found, name).index_copy(0, index, getattr(more, name)[broken]) for name in fields}
    part = len(rows) / len(found.success)
    passes = {kind: getattr(found, kind) + part * getattr(more, kind) for kind in ("forwards", "backwards")}
    return replace(found, **values, **passes)
