"""AutoAttack (Croce and Hein 2020) on one batch; the evaluator runs the same attacks on whole data sets."""

from dataclasses import replace

from torch import Tensor, nn

from hauberk.attacks.presets import AUTOATTACK, get_preset
from hauberk.attacks.result import AttackResult
from hauberk.attacks.run import run_attack
from hauberk.checks import check_batch
from hauberk.core.random import ExampleRng, batch_rng
from hauberk.threat import ThreatModel


def autoattack(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int | ExampleRng = 0) -> AttackResult:
    """Run AutoAttack (Croce and Hein 2020), standard version: APGD-CE, then APGD-T, FAB-T and Square, each on what stands.

    With fewer than 4 classes targeted APGD maximises ``z_t - z_y``, because targeted DLR is not defined.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,) int64.
        threat: ball and box.
        seed: of all random draws; an integer, or noise keyed by example.

    Returns:
        AttackResult: ``x_adv`` is the point of the attack that succeeded, otherwise of APGD-CE; so are ``kappa`` and the like.

    Raises:
        UserError: for models and inputs that do not fit together.
    """
    y = check_batch(x, y)
    rng = batch_rng(seed, x)
    first, *others = AUTOATTACK
    found = run_attack(get_preset(first).program(threat, 10)[0], model, x, y, threat, seed=rng)
    assert found.clean_logits is not None  # an attack on rows looks at the clean inputs
    classes = found.clean_logits.shape[1]
    for name in others:
        standing = (~found.success).nonzero().squeeze(1)
        if len(standing) == 0:
            break
        program, _ = get_preset(name).program(threat, classes)
        more = run_attack(program, model, x[standing], y[standing], threat, seed=rng.rows(standing))
        found = _merge(found, more, standing)
    return found


def _merge(found: AttackResult, more: AttackResult, rows: Tensor) -> AttackResult:
    """Put what ``more`` found for some rows in place of what was found before."""
    broken = more.success
    index = rows[broken]
    fields = ("x_adv", "success", "kappa", "first_success", "steps_taken", "logits", "logits_lps")
    values = {name: getattr(found, name).index_copy(0, index, getattr(more, name)[broken]) for name in fields}
    share = len(rows) / len(found.success)
    passes = {kind: getattr(found, kind) + share * getattr(more, kind) for kind in ("forwards", "backwards")}
    return replace(found, **values, **passes)
