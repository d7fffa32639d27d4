"""The training loop: steps, epochs, validation. It knows no method by name."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.averaging import ExponentialMovingAverage, StochasticWeightAverage
from hauberk.core.distributed import SyncThrottle, data_parallel, get_world, running_statistics
from hauberk.core.errors import SCHEMA_ERRORS, UserError, in_one_line
from hauberk.core.io import machine
from hauberk.core.numerics import Precision, float32_mode, float32_switches
from hauberk.core.progress import ProgressBar, Stop
from hauberk.data import fetch_for
from hauberk.fastpath.frozen_copy import use_channels_last
from hauberk.fastpath.precision import PrecisionPolicy, autotune_precision
from hauberk.methods import Step
from hauberk.training import checkpoint
from hauberk.training.batch import BatchLoader
from hauberk.training.callbacks import CallbackList, restored_row
from hauberk.training.export import save_model
from hauberk.training.metrics import (
    EpochMetrics,
    TrainingDiverged,
    check_catastrophic_overfitting,
    epoch_line,
    score,
    validate,
)
from hauberk.training.plan import Plan
from hauberk.training.schedule import eps_scale, halve_rates, make_optimizer, require_safe_state, swa_epoch

_AVERAGED = 10  # the moving average that is not specified spans a tenth of the training
_PLAIN = ("epoch", "step", "seconds", "best", "best_weights", "n_rollbacks", "epoch_start")  # of a checkpoint
_MOST_ROLLBACKS = 3  # to earlier weights in one run, each with half the learning rate


class Trainer:
    """A training under way, as callbacks are given it.

    Args:
        model: trained in place.
        plan: what to do.
        folder: where to keep the run, or None for nowhere.
        device: where to train.
        stop: whether somebody asked to save and stop; looked at between steps.
        logs: callbacks that run before those of the plan.
        report_every: print the line of every so many epochs, and of the last.

    Attributes:
        method: what attacks and computes the loss.
        optimizer, scheduler: torch's; the scheduler is None for an optimizer that was passed in without one.
        world: the processes that train together; all of them do all of this, rank 0 writes.
        epoch, step: the next to do, from 0; ``step`` within the epoch.
        lr: rate of the last step, of the first group of parameters.
        n_rollbacks: how often the training went back to its best weights; each halves the rate.
        best: epoch (from 0) and metrics of the best epoch so far; empty before the first ends.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        folder: Path | None,
        device: torch.device,
        stop: Stop,
        logs: Sequence[Any],
        report_every: int,
    ):
        self.model, self.plan, self.method, self.world = model, plan, plan.method, get_world()
        self.folder, self.device, self.report_every = folder, device, report_every
        self._stop = stop
        for module in (model, plan.method):
            self.world.broadcast_module(module.to(device))
        self._batches = BatchLoader(plan, device, self.world)
        self.optimizer, self.scheduler, self._scheduler_interval = make_optimizer(
            model, plan.config, plan.total_steps, plan.make_optimizer, plan.make_scheduler
        )
        config = plan.config
        self.ema = self.swa = self.fawa = None
        if config.ema:
            decay = config.ema if config.ema > 0 else max(0.0, 1 - _AVERAGED / plan.total_steps)
            self.ema = ExponentialMovingAverage(model, decay, config.ema_warmup)
        elif config.swa_start:
            self.swa = StochasticWeightAverage(model)
        elif config.fawa:
            self.fawa = ExponentialMovingAverage(model, config.fawa)
        self.callbacks = CallbackList([*logs, *plan.callbacks], self.world)
        self.metrics = EpochMetrics(device, self.world)
        parts = {"model": model, "optimizer": self.optimizer, "scheduler": self.scheduler, "ema": self.ema}
        parts |= {"swa": self.swa, "fawa": self.fawa}
        self._stateful: dict[str, Any] = {name: part for name, part in parts.items() if part is not None}
        self._throttle = SyncThrottle(self.world, device)
        self._numerics: dict[str, Any] = {}  # what fixes how results are rounded; empty where that is to be measured
        if config.precision != "auto" and config.compile == "off":
            self.set_precision(PrecisionPolicy(config.precision))
        self.epoch = self.step = 0
        self.seconds = 0.0  # of training, in all sessions of the run
        self.lr: Any = 0.0
        self.n_rollbacks = 0
        self.epoch_start: dict[str, Any] = {}  # states of optimizer and scheduler, for an epoch that has to begin again
        self._untried = ""  # what to say where a state that was read from a file turns out not to be usable
        self.best: dict[str, Any] = {}
        self.best_weights: dict[str, Tensor] = {}

    def set_precision(self, policy: PrecisionPolicy) -> None:
        """Train in the precision of a policy, with attacks compiled or not as it says."""
        self.method.precision = policy
        policy.share(self.model, self.eval_model)
        self._numerics = {"precision": policy.precision, "compiled": policy.compiled, "processes": self.world.size}
        if policy.precision == "bf16":
            use_channels_last(self.model)
            use_channels_last(self.eval_model)  # averaged in one pass over all weights only where both are laid out alike

    @property
    def eval_model(self) -> nn.Module:
        """The network that is validated and exported: the average, if one is kept."""
        average = self.ema or self.swa or self.fawa
        return self.model if average is None else average.module

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        patience = self.plan.config.patience
        stalled = patience > 0 and self.epoch > self.method.first_full_epoch and self.epoch - 1 - self.best["epoch"] >= patience
        return self.epoch >= self.plan.config.epochs or (self.step == 0 and stalled)

    def run(self, display: ProgressBar) -> None:
        """Train until the plan is done or somebody asks to stop. Raises UserError if it collapses or cannot save."""
        if not self._numerics:
            self.set_precision(self._autotuned())
        policy = self.method.precision
        assert policy is not None  # it was set
        step = data_parallel(Step(self.model, self.method), self.world)
        with ExitStack() as stack:
            stack.callback(policy.release)
            stack.enter_context(float32_mode(policy.precision))  # of the backward passes, too
            self.callbacks.call("on_train_begin", self)
            while not self.finished and not self.world.any(self._stop.asked)[0]:
                try:
                    self._run_epoch(step, display)
                except TrainingDiverged as problem:
                    said = self._rollback(str(problem))
                    if self.world.is_main:
                        display.warn(said)
            self.callbacks.call("on_train_end", self)

    def _autotuned(self) -> PrecisionPolicy:
        """Return what rank 0 finds to be fastest, there with the copy that it has compiled."""
        config, found = self.plan.config, []

        def measure() -> tuple[Precision, bool]:
            some = self.world.local_shard(torch.arange(min(config.batch_size, len(self.plan.train))))
            x, _ = fetch_for(self.model, self.plan.train, some)
            found.append(autotune_precision(self.model, x, config.precision, config.compile))
            return found[0].precision, found[0].compiled

        settings = self.world.on_main_process(measure)
        return found[0] if found else PrecisionPolicy(*settings)

    def _run_epoch(self, step: nn.Module, display: ProgressBar) -> None:
        batches = self.plan.batches(self.epoch)
        title = f"epoch {self.epoch + 1}/{self.plan.config.epochs}"
        begun = saved = time.perf_counter()
        if self.step == 0:
            self.epoch_start = deepcopy(
                {
                    "optimizer": {**self.optimizer.state_dict(), "state": {}},
                    "scheduler": self.scheduler and self.scheduler.state_dict(),
                }
            )
        while self.step < len(batches):
            look = self._throttle.should_sync()
            if look:
                overdue = time.perf_counter() - saved > 60 * self.plan.config.save_minutes
                stop, due = self.world.any(self._stop.asked, overdue)
                if stop:
                    break
                if due:
                    self.save()
                    saved = time.perf_counter()
            self._train_step(step, batches[self.step], look)
            self.step += 1
            display.advance(len(batches[self.step - 1]), title)
        took = time.perf_counter() - begun
        self.seconds += took
        if self.step == len(batches):
            self._end_epoch(display, len(self.plan.train) / took)
        else:
            self.save()

    def _train_step(self, step: nn.Module, batch: Tensor, look: bool) -> None:
        plan, config = self.plan, self.plan.config
        at = self.epoch * plan.steps_per_epoch + self.step
        self.model.train()
        part = self._batches.load(self.model, batch, at)
        self.optimizer.zero_grad()  # before the passes, so that old gradients do not add to their memory
        scale, sizes = eps_scale(config.eps_warmup, at, plan.total_steps), self.world.shard_sizes(len(batch))
        more = {"index": part.index, "rng": part.rng, "targets": part.targets, "class_weights": plan.class_weights}
        more |= {"eps_scale": scale, "sizes": sizes, "done": at / plan.total_steps}
        out = step(part.x, part.y, self.epoch, **more)
        if look:
            self._require_finite(self.world.sum(out.loss).item() / self.world.size)
        out.loss.backward()
        if config.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.lr = self.optimizer.param_groups[0]["lr"]
        with self._as_restored():
            self.optimizer.step()
            self._step_scheduler("step")
        self.world.average(running_statistics(self.model))
        if self.ema is not None:
            self.ema.update(self.model)
        self.method.after_step(self.model)
        self.metrics.add(out, part.y, len(batch) / self.world.size)
        for hook in self.callbacks.step_hooks:
            hook(self, out)

    @contextmanager
    def _as_restored(self) -> Iterator[None]:
        """Say of an optimizer or scheduler that fails, in the first epoch after its state was read, that the state is damaged.

        What such states must be like, only they know, and most of them take anything.
        """
        try:
            yield
        except SCHEMA_ERRORS as error:
            if not self._untried:
                raise
            raise UserError(f"{self._untried}: {in_one_line(error)}") from error

    def _step_scheduler(self, interval: str) -> None:
        if self.scheduler is not None and self._scheduler_interval == interval:
            self.scheduler.step()

    def _end_epoch(self, display: ProgressBar, rate: float) -> None:
        seen = self.metrics.means()
        self._require_finite(seen["loss"])
        plan, config, method = self.plan, self.plan.config, self.method
        row: dict[str, Any] = {"epoch": self.epoch + 1, **seen}
        if self.swa is not None:
            if self.epoch <= swa_epoch(config):  # until then the network itself
                self.swa.restart()
            self.swa.update(self.model)
        if self.fawa is not None:
            if validate(self.model, plan, self.world)["val_worst_class_robust_accuracy"] >= config.fawa_threshold:
                self.fawa.update(self.model)
            self.fawa.follow(self.model)
        if len(plan.val):
            row |= validate(self.eval_model, plan, self.world)
            # While ε still grows, training sees a weaker attack than validation.
            last = (self.epoch + 1) * plan.steps_per_epoch - 1
            if config.on_divergence != "ignore" and eps_scale(config.eps_warmup, last, plan.total_steps) == 1.0:
                classes = plan.train.classes or plan.spec.classes
                check_catastrophic_overfitting(row, self.best.get("metrics", {}), len(plan.val), classes)
        row |= {"lr": float(self.lr), "seconds": self.seconds, "examples_per_second": rate}
        # What came before the method's weights were on is another method's network, however well it does.
        attacks = method.sees_worst_cases
        first = not self.best or self.best["epoch"] < method.first_full_epoch <= self.epoch
        better = first or score(row, attacks) > score(self.best["metrics"], attacks)
        if better:
            self.best = {"epoch": self.epoch, "metrics": row}
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.eval_model.state_dict().items()}
        self.world.on_main_process(lambda: self._export(row, better))
        self.callbacks.call("on_epoch_end", self, row)
        with self._as_restored():
            self._step_scheduler("epoch")
        self._untried = ""
        self.epoch, self.step = self.epoch + 1, 0
        self.metrics = EpochMetrics(self.device, self.world)
        self.save()
        if self.epoch % self.report_every == 0 or self.finished:
            display.line(epoch_line(row, config.epochs, better and len(plan.val) > 0))

    def _export(self, row: dict[str, Any], better: bool) -> None:
        if self.folder is None:
            return
        about = {**self.plan.to_dict(), "has_reject_class": self.method.extra_outputs > 0, "metrics": row, **self._numerics}
        about["float32"] = float32_switches()
        weights = {"last": self.eval_model.state_dict()} | ({"best": self.best_weights} if better else {})
        every = self.plan.config.save_every
        if every and (self.epoch + 1) % every == 0:
            weights[f"epoch-{self.epoch + 1}"] = weights["last"]
        for which, tensors in weights.items():
            card = {"which": which, "epoch": self.epoch + 1, **about, "machine": machine(self.device)}
            save_model(self.folder / which, tensors, card)

    def _require_finite(self, loss: float) -> None:
        if not isfinite(loss):
            raise TrainingDiverged(f"the loss became {loss} at epoch {self.epoch + 1}, step {self.step + 1}")

    def _rollback(self, problem: str) -> str:
        """Go back to the best weights so far, and begin the epoch again with half the learning rate. Returns what to say.

        Raises UserError if that is not asked for, or does not help.
        """
        if self.plan.config.on_divergence != "rollback" or not self.best or self.n_rollbacks == _MOST_ROLLBACKS:
            kept = self.folder is not None and self.epoch > 0
            saved = f"; the last good checkpoint, of epoch {self.epoch}, is in {self.folder}" if kept else ""
            again = f", after {self.n_rollbacks} returns to earlier weights" if self.n_rollbacks else ""
            advice = "Try a lower lr, a stronger training attack, or go on with --on-divergence rollback"
            self.world.raise_if_any(f"{problem}{again}{saved}. {advice}")
        self.model.load_state_dict(self.best_weights)
        if self.eval_model is not self.model:
            self.eval_model.load_state_dict(self.best_weights)
        self.method.restart(self.model)
        start = deepcopy(self.epoch_start)
        with self._as_restored():
            self.optimizer.load_state_dict(start["optimizer"])  # forgets momentum and the like
            if self.scheduler is not None:
                self.scheduler.load_state_dict(start["scheduler"])
            halve_rates(self.optimizer, self.scheduler)
        self.n_rollbacks += 1
        self.metrics, self.step = EpochMetrics(self.device, self.world), 0
        return f"{problem}; going on from the weights of epoch {self.best['epoch'] + 1} with half the learning rate"

    def save(self) -> None:
        """Write a checkpoint; by all processes together. Raises UserError if it cannot be written."""
        if self.folder is not None:
            folder, state = self.folder, self.state_dict()
            self.world.on_main_process(lambda: checkpoint.save(folder, self.plan.to_dict(), state))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a training needs to go on exactly; by all processes together. ``local`` has what each has of its own.

        Raises TrainingDiverged if the loss is not finite.
        """
        metrics = self.metrics.state_dict()
        self._require_finite(metrics.get("loss", [0.0])[0])
        local = {
            "callbacks": self.callbacks.state_dict(),
            "method": self.method.local_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            **self._numerics,
            **{name: part.state_dict() for name, part in self._stateful.items()},
            "metrics": metrics,
            "method": dict(self.method.state_dict()),
            "local": self.world.all_gather_object(local),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; by all processes together. What is local begins anew with another number of processes."""
        self._untried = f"the checkpoint in {self.folder} cannot be gone on with"
        same = state["processes"] == self.world.size
        local = state["local"][self.world.rank if same else 0]
        self.set_precision(PrecisionPolicy(state["precision"], state["compiled"]))
        if hidden := [key for key in state.get("scheduler") or () if callable(getattr(self.scheduler, key, None))]:
            raise ValueError(f"its scheduler keeps a {hidden[0]!r}")  # which would take the place of a method
        for name, part in self._stateful.items():
            part.load_state_dict(state[name])
        require_safe_state(self.optimizer)
        self.metrics.load_state_dict(state["metrics"])
        self.epoch, self.step, self.seconds = int(state["epoch"]), int(state["step"]), float(state["seconds"])
        self.n_rollbacks, self.epoch_start = int(state["n_rollbacks"]), dict(state["epoch_start"])
        if self.epoch:  # then one is the best
            metrics = restored_row(state["best"]["metrics"])
            self.best = {"epoch": int(state["best"]["epoch"]), "metrics": metrics}
            score(metrics, self.method.sees_worst_cases)  # has all that the next epochs will be compared with
            like, best = self.eval_model.state_dict(), state["best_weights"]
            self.best_weights = {name: torch.empty_like(like[name], device="cpu").copy_(best[name]) for name in like}
        self.method.load_state_dict(self._moved(state["method"]))
        self.method.load_local_state(self._moved(local["method"]) if same else {})
        self.callbacks.load_state_dict(local["callbacks"])
        if same:
            torch.set_rng_state(local["rng"])
            if self.device.type == "cuda" and local["cuda_rng"] is not None:
                torch.cuda.set_rng_state(local["cuda_rng"], self.device)

    def _moved(self, state: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in state.items()}
