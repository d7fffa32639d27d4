"""The training loop. It knows no method by name."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hauberk.core.distributed import World
from hauberk.core.environment import machine
from hauberk.core.errors import UserError
from hauberk.core.progress import ProgressBar
from hauberk.core.random import ExampleRng
from hauberk.data import augment, fetch_for, resident
from hauberk.fastpath.autotune import autotune_precision
from hauberk.fastpath.precision import Precision, PrecisionPolicy
from hauberk.training.checkpoint import save
from hauberk.training.early_failure import MOST_RETURNS, TrainingDiverged, check_catastrophic_overfitting, require_finite
from hauberk.training.interrupt import Stop
from hauberk.training.metrics import EpochMetrics
from hauberk.training.metrics_log import Record, epoch_line
from hauberk.training.model_card import save_model
from hauberk.training.parallel import in_parallel, running_statistics
from hauberk.training.plan import Plan
from hauberk.training.schedule import eps_scale, learning_rate
from hauberk.training.sync_throttle import SyncThrottle
from hauberk.training.validate import validate

_AVERAGED = 10  # the moving average that is not specified spans a tenth of the training


class Trainer:
    """A run under way: the model, its optimiser, and where in the plan it stands.

    Args:
        model: trained in place.
        plan: what to do.
        folder: where to keep the run, or None for nowhere.
        device: where to train.
        world: the processes that train together; all of them do all of this, the first one writes.
        stop: asked between steps.
        report_every: print the line of every so many epochs, and of the last.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        folder: Path | None,
        device: torch.device,
        world: World,
        stop: Stop,
        report_every: int = 1,
    ):
        self.model = model.to(device)
        world.broadcast_module(model)
        self.plan, self.folder, self.device, self.world, self.stop = plan, folder, device, world, stop
        self.report_every = report_every
        self.examples = resident(plan.examples, device)
        settings = plan.settings
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
        self.ema = None
        if settings.ema:
            decay = settings.ema if settings.ema > 0 else max(0.0, 1 - _AVERAGED / plan.total_steps)
            averaging = get_ema_multi_avg_fn(decay)
            self.ema = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
        self.record = Record(folder if world.is_main else None)
        self.meter = EpochMetrics(device)
        self.lookout = SyncThrottle(world, device)
        self.sight: PrecisionPolicy | None = None  # to be picked
        if settings.precision != "auto" and settings.compile == "off":
            self.use(settings.precision, False)
        self.epoch = self.step = 0  # the next to do; step within the epoch
        self.seconds = 0.0  # of training, over all sittings
        self.returns = 0  # to the best weights, after a collapse
        self.best: dict[str, Any] = {}
        self.best_weights: dict[str, torch.Tensor] = {}

    def use(self, precision: Precision, compiled: bool) -> None:
        """Train in this precision, with attacks compiled or not."""
        self.sight = self.plan.method.sight = PrecisionPolicy(precision, compiled)
        if precision == "bf16":  # whose convolutions are faster in this order
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def judged(self) -> nn.Module:
        """The network that validation and export look at: the average, if one is kept."""
        return self.model if self.ema is None else self.ema.module

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        patience, begins = self.plan.settings.patience, self.plan.method.begins
        tired = patience > 0 and self.epoch > begins and self.epoch - 1 - self.best["epoch"] >= patience
        return self.epoch >= self.plan.settings.epochs or (self.step == 0 and tired)

    def run(self, display: ProgressBar) -> None:
        """Train until the plan is done or somebody asks to stop.

        Raises:
            UserError: if training collapses, or a checkpoint cannot be written.
        """
        if self.sight is None:
            self.use(*self.world.on_main_process(self._pick))
        step = in_parallel(self.model, self.plan.method, self.world)
        while not self.finished and not self._asked_to_stop():
            try:
                self._run_epoch(step, display)
            except TrainingDiverged as problem:
                display.line(self._go_back(str(problem)))

    def _pick(self) -> tuple[Precision, bool]:
        settings = self.plan.settings
        some = self.world.local_shard(torch.arange(min(settings.batch_size, len(self.plan.train))))
        x, _ = fetch_for(self.model, self.plan.train, some)
        return autotune_precision(self.model, x, settings.precision, settings.compile)

    def _asked_to_stop(self) -> bool:
        return self.world.any(self.stop.asked)[0]

    def _run_epoch(self, step: nn.Module, display: ProgressBar) -> None:
        batches = self.plan.batches(self.epoch)
        title = f"epoch {self.epoch + 1}/{self.plan.settings.epochs}"
        begun = saved = time.perf_counter()
        while self.step < len(batches):
            look = self.lookout.due()
            if look:
                stop, due = self.world.any(self.stop.asked, time.perf_counter() - saved > 60 * self.plan.settings.save_minutes)
                if stop:
                    self.seconds += time.perf_counter() - begun
                    save(self)
                    return
                if due:
                    save(self)
                    saved = time.perf_counter()
            self._train_step(step, batches[self.step], look)
            self.step += 1
            display.advance(len(batches[self.step - 1]), title)
        self.seconds += time.perf_counter() - begun
        self._end_epoch(display, len(self.plan.train) / (time.perf_counter() - begun))

    def _train_step(self, step: nn.Module, batch: torch.Tensor, look: bool) -> None:
        plan, settings = self.plan, self.plan.settings
        at = self.epoch * plan.steps_per_epoch + self.step
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(at)
        index = self.world.local_shard(batch)
        x, y = fetch_for(self.model, self.examples, index)
        rng = ExampleRng(settings.seed, index.to(self.device), stage=at)
        x = augment(x, plan.augment, rng)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)  # before the passes, so that old gradients do not add to their memory
        out = step(
            x,
            y,
            self.epoch,
            index=index,
            class_weights=plan.class_weights,
            rng=rng,
            eps_scale=eps_scale(settings, at, plan.total_steps),
            sizes=self.world.shard_sizes(len(batch)),
        )
        if look:
            require_finite(self.world.sum(out.loss).item() / self.world.size, self.here)
        out.loss.backward()
        self.optimizer.step()
        self.world.average(running_statistics(self.model))
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.meter.add(out, y, len(batch) / self.world.size)

    def _end_epoch(self, display: ProgressBar, rate: float) -> None:
        seen = self.meter.total(self.world).read()
        require_finite(seen["loss"], self.here)
        plan, settings = self.plan, self.plan.settings
        last = (self.epoch + 1) * plan.steps_per_epoch - 1
        row: dict[str, Any] = {"epoch": self.epoch + 1, **seen}
        if len(plan.val):
            at_once = -(-settings.batch_size // self.world.size)
            row |= validate(
                self.judged,
                plan.val,
                plan.method,
                settings.val_steps,
                settings.seed,
                at_once,
                self.world,
                plan.class_weights,
            )
            # While ε still grows, training sees a weaker attack than validation.
            whole_eps = eps_scale(settings, last, plan.total_steps) == 1.0
            if settings.on_divergence != "ignore" and whole_eps:
                check_catastrophic_overfitting(
                    row, self.best.get("metrics", {}), len(plan.val), plan.train.classes or plan.spec.classes
                )
        row |= {"lr": self._rate(last), "seconds": self.seconds, "examples_per_second": rate}
        # What came before the method's weights were on is another method's network, however well it does.
        first = not self.best or self.best["epoch"] < plan.method.begins <= self.epoch
        better = first or self.score(row) > self.score(self.best["metrics"])
        if better:
            self.best = {"epoch": self.epoch, "metrics": row}
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.judged.state_dict().items()}
        self.world.on_main_process(lambda: self._write_epoch(row, better))
        self.epoch, self.step = self.epoch + 1, 0
        self.meter = EpochMetrics(self.device)
        save(self)
        if self.epoch % self.report_every == 0 or self.finished:
            display.line(epoch_line(row, settings.epochs, better and len(plan.val) > 0))

    def _write_epoch(self, row: dict[str, Any], better: bool) -> None:
        self.record.add(row)
        self._export("last", {"epoch": self.epoch, "metrics": row}, self.judged.state_dict())
        if better:
            self._export("best", self.best, self.best_weights)

    def numerics(self) -> dict[str, Any]:
        """What fixes how results are rounded."""
        assert self.sight is not None
        return {"precision": self.sight.precision, "compiled": self.sight.compiled, "processes": self.world.size}

    def score(self, row: dict[str, Any]) -> tuple[float, ...]:
        """Larger is better. A method without an attack is judged by clean accuracy; with nothing held out, the last wins."""
        if "val_clean_accuracy" not in row:
            return (row["epoch"],)
        names = ("val_robust_accuracy", "val_clean_accuracy")
        return tuple(row[name] for name in (names if self.plan.method.attack else names[::-1]))

    @property
    def here(self) -> str:
        """Epoch and step, for messages."""
        return f"epoch {self.epoch + 1}, step {self.step + 1}"

    def _rate(self, at: int) -> float:
        """The learning rate of a step."""
        return learning_rate(self.plan.settings, at, self.plan.total_steps) * 0.5**self.returns

    def _go_back(self, problem: str) -> str:
        """Go back to the best weights so far, and begin the epoch again with half the learning rate. Returns what to say.

        Raises:
            UserError: if that is not asked for, or does not help.
        """
        if self.plan.settings.on_divergence != "rollback" or not self.best or self.returns == MOST_RETURNS:
            self.world.on_main_process(lambda: self._give_up(problem))
        self.model.load_state_dict(self.best_weights)
        if self.ema is not None:
            self.ema.module.load_state_dict(self.best_weights)
        self.optimizer.state.clear()
        self.meter, self.step = EpochMetrics(self.device), 0
        self.returns += 1
        return f"{problem}; going on from the weights of epoch {self.best['epoch'] + 1} with half the learning rate"

    def _give_up(self, problem: str) -> None:
        kept = f"; the last good checkpoint, of epoch {self.epoch}, is in {self.folder}" if self.folder and self.epoch else ""
        again = f", after {self.returns} returns to earlier weights" if self.returns else ""
        raise UserError(
            f"{problem}{again}{kept}. Try a lower lr, a stronger training attack, or go on with --on-divergence rollback"
        )

    def _export(self, which: str, epoch: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        if self.folder is None:
            return
        card = {
            "which": which,
            "epoch": epoch["epoch"] + 1,
            **self.plan.to_dict(),
            "has_reject_class": self.plan.method.extra_outputs > 0,
            "metrics": epoch["metrics"],
            **self.numerics(),
            "machine": machine(self.device),
        }
        save_model(self.folder / which, weights, card)
