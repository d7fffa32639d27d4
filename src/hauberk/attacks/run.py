"""One batch through a program of the queue: how the attacks on rows are called from Python."""

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks.frozen_model import frozen_model
from hauberk.attacks.model_queries import ModelQueries
from hauberk.attacks.result import AttackResult, Best, batches
from hauberk.attacks.rows import Program, Rows, SomeRows, Task
from hauberk.attacks.scheduler import Queue
from hauberk.checks import checked_call
from hauberk.core.random import ExampleRng, batch_rng
from hauberk.objectives.functional import fooled
from hauberk.threat import ThreatModel


def run_attack(
    program: Program[SomeRows],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    seed: int | ExampleRng = 0,
    draws: int = 1,
) -> AttackResult:
    """Attack a batch, all rows at once; those that are broken, or have had all their turns, leave.

    An input that is misclassified as it is counts as its own adversarial example, and is not attacked.

    Args:
        program: the attack.
        model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,), integers.
        threat: ball and box.
        seed: of the random draws; an integer, or noise keyed by example.
        draws: passes to average over, for random models.

    Returns:
        AttackResult. An attack stops at its first success, so ``kappa`` counts the looks before it in the last turn.

    Raises:
        UserError: if threat model, inputs, labels and model do not fit together.
    """
    with checked_call(model, x, y, threat, program.evading) as y, frozen_model(model) as view:
        rng = batch_rng(seed, x)
        x, y = x.detach().clone(), y.clone()
        passes = ModelQueries(view, draws)
        clean = passes.look(x)
        best, region = Best(x), threat.around(x)
        best.logits = clean
        kappa, first, taken = torch.zeros_like(y), torch.full_like(y, -1), torch.zeros_like(y)

        def fetch(examples: list[int], turns: list[int]) -> Task:
            index = torch.tensor(examples, device=x.device)
            turn = torch.tensor(turns, device=x.device)
            return Task(region.rows(index), y[index], clean[index], turn, rng.rows(index))

        def record(rows: Rows, places: Tensor, examples: list[int]) -> None:
            who = torch.tensor(examples, device=x.device)
            found, loss = rows.found[places], rows.best_loss[places]
            best.offer_rows(who, rows.best[places], rows.best_logits[places], loss, found)
            first[who] = rows.found_at[places]
            taken[who] = rows.tick[places] - 1
            kappa[who] = torch.where(found, rows.found_at[places], taken[who])

        def judge(rows: Rows, places: Tensor, examples: list[int], turns: list[int]) -> np.ndarray:
            record(rows, places, examples)
            return np.ones(len(examples), dtype=bool)

        turns = program.turns(clean.shape[1])
        queue = Queue(program, passes, fetch, judge, record, turns, len(x), chunk=len(x), narrower=range(len(x) - 1, 0, -1))
        wrong = fooled(clean, y, program.evading)
        best.wrong, first = wrong, torch.where(wrong, 0, first)
        queue.add((~wrong).nonzero().squeeze(1).tolist())
        queue.run()
    return AttackResult(
        x_adv=best.x_adv,
        success=best.wrong,
        kappa=kappa,
        first_success=first,
        steps_taken=taken,
        logits=best.logits,
        logits_lps=best.logits,
        clean_logits=clean,
        forwards=batches(passes.forwards, len(x)),
        backwards=batches(passes.backwards, len(x)),
    )
