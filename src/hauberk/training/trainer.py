"""The training loop: steps, epochs, validation. It knows no method by name."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hauberk.core.distributed import SyncThrottle, World, data_parallel, running_statistics
from hauberk.core.io import machine
from hauberk.core.progress import ProgressBar
from hauberk.core.random import ExampleRng
from hauberk.data import augment, fetch_for, to_device
from hauberk.fastpath.precision import Precision, PrecisionPolicy, autotune_precision
from hauberk.methods import Step
from hauberk.training.checkpoint import get_rng_state, save, set_rng_state
from hauberk.training.export import save_model
from hauberk.training.metrics import (
    CallbackList,
    EpochMetrics,
    TrainingDiverged,
    check_catastrophic_overfitting,
    epoch_line,
    require_finite,
    score,
    validate,
)
from hauberk.training.optimizer import MakeOptimizer, MakeScheduler, Optimization, eps_scale
from hauberk.training.plan import Plan

_AVERAGED = 10  # the moving average that is not specified spans a tenth of the training
_PLAIN = ("epoch", "step", "seconds", "best", "best_weights")  # of a checkpoint
_MOST_ROLLBACKS = 3  # to earlier weights in one run, each with half the learning rate


class Trainer:
    """A training under way, as callbacks are given it.

    Args:
        model: trained in place.
        plan: what to do.
        folder: where to keep the run, or None for nowhere.
        device: where to train.
        world: the processes that train together; all of them do all of this, rank 0 writes.
        stop_asked: asked between steps whether to save and stop.
        make_optimizer, make_scheduler: see :class:`Optimization`.
        callbacks: see :class:`CallbackList`.
        report_every: print the line of every so many epochs, and of the last.

    Attributes:
        method: what attacks and computes the loss.
        epoch, step: the next to do, from 0; ``step`` within the epoch.
        best: epoch (from 0) and metrics of the best epoch so far; empty before the first ends.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        folder: Path | None,
        device: torch.device,
        world: World,
        stop_asked: Callable[[], bool],
        make_optimizer: MakeOptimizer | None = None,
        make_scheduler: MakeScheduler | None = None,
        callbacks: Iterable[Any] = (),
        report_every: int = 1,
    ):
        self.model, self.plan, self.method, self.world = model, plan, plan.method, world
        self.folder, self.device, self.report_every = folder, device, report_every
        for module in (model, plan.method):
            world.broadcast_module(module.to(device))
        self._stop_asked = stop_asked
        self._examples = to_device(plan.examples, device)
        self._steps_per_epoch, self._total_steps = plan.steps_per_epoch, plan.total_steps
        config = plan.config
        parameters = list(model.parameters())
        self.optimization = Optimization(parameters, config, self._total_steps, make_optimizer, make_scheduler)
        self.optimizer, self.scheduler = self.optimization.optimizer, self.optimization.scheduler
        self.ema = None
        if config.ema:
            decay = config.ema if config.ema > 0 else max(0.0, 1 - _AVERAGED / self._total_steps)
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.callbacks = CallbackList(callbacks, world)
        self.metrics = EpochMetrics(device)
        self._throttle = SyncThrottle(world, device)
        self._policy: PrecisionPolicy | None = None  # to be chosen by measuring
        if config.precision != "auto" and config.compile == "off":
            self.set_precision(config.precision, False)
        self.epoch = self.step = 0
        self.seconds = 0.0  # of training, in all sessions of the run
        self.best: dict[str, Any] = {}
        self.best_weights: dict[str, Tensor] = {}

    def set_precision(self, precision: Precision, compiled: bool) -> None:
        """Train in this precision, with attacks compiled or not."""
        self._policy = self.method.precision = PrecisionPolicy(precision, compiled)
        if precision == "bf16":  # whose convolutions are faster in this order
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def eval_model(self) -> nn.Module:
        """The network that is validated and exported: the moving average, if one is kept."""
        return self.model if self.ema is None else self.ema.module

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        patience, begins = self.plan.config.patience, self.method.first_full_epoch
        stalled = patience > 0 and self.epoch > begins and self.epoch - 1 - self.best["epoch"] >= patience
        return self.epoch >= self.plan.config.epochs or (self.step == 0 and stalled)

    @property
    def position(self) -> str:
        """Epoch and step, for messages."""
        return f"epoch {self.epoch + 1}, step {self.step + 1}"

    def run(self, display: ProgressBar) -> None:
        """Train until the plan is done or somebody asks to stop. Raises UserError if it collapses or cannot save."""
        if self._policy is None:
            self.set_precision(*self.world.on_main_process(self._autotune))
        step = data_parallel(Step(self.model, self.method), self.world)
        self.callbacks.call("on_train_begin", self)
        while not self.finished and not self.world.any(self._stop_asked())[0]:
            try:
                self._run_epoch(step, display)
            except TrainingDiverged as problem:
                display.line(self._rollback(str(problem)))
        self.callbacks.call("on_train_end", self)

    def _autotune(self) -> tuple[Precision, bool]:
        config = self.plan.config
        some = self.world.local_shard(torch.arange(min(config.batch_size, len(self.plan.train))))
        x, _ = fetch_for(self.model, self.plan.train, some)
        return autotune_precision(self.model, x, config.precision, config.compile)

    def _run_epoch(self, step: nn.Module, display: ProgressBar) -> None:
        batches = self.plan.batches(self.epoch)
        title = f"epoch {self.epoch + 1}/{self.plan.config.epochs}"
        begun = saved = time.perf_counter()
        if self.step == 0:
            self.optimization.begin_epoch()
        while self.step < len(batches):
            look = self._throttle.should_sync()
            if look:
                overdue = time.perf_counter() - saved > 60 * self.plan.config.save_minutes
                stop, due = self.world.any(self._stop_asked(), overdue)
                if stop:
                    self.seconds += time.perf_counter() - begun
                    self.save()
                    return
                if due:
                    self.save()
                    saved = time.perf_counter()
            self._train_step(step, batches[self.step], look)
            self.step += 1
            display.advance(len(batches[self.step - 1]), title)
        self.seconds += time.perf_counter() - begun
        self._end_epoch(display, len(self.plan.train) / (time.perf_counter() - begun))

    def _train_step(self, step: nn.Module, batch: Tensor, look: bool) -> None:
        plan, config = self.plan, self.plan.config
        at = self.epoch * self._steps_per_epoch + self.step
        index = self.world.local_shard(batch)
        x, y = fetch_for(self.model, self._examples, index)
        rng = ExampleRng(config.seed, index.to(self.device), stage=at)
        if plan.augmentation is not None:
            x = augment(x, plan.augmentation, rng)
        self.model.train()
        self.optimization.begin_step(at)  # before the passes, so that old gradients do not add to their memory
        scale, sizes = eps_scale(config, at, self._total_steps), self.world.shard_sizes(len(batch))
        out = step(x, y, self.epoch, index=index, class_weights=plan.class_weights, rng=rng, eps_scale=scale, sizes=sizes)
        if look:
            require_finite(self.world.sum(out.loss).item() / self.world.size, self.position)
        out.loss.backward()
        self.optimization.step()
        self.world.average(running_statistics(self.model))
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.method.after_step(self.model)
        self.metrics.add(out, y, len(batch) / self.world.size)
        for hook in self.callbacks.step_hooks:
            hook(self, out)

    def _end_epoch(self, display: ProgressBar, rate: float) -> None:
        seen = self.metrics.total(self.world).means()
        require_finite(seen["loss"], self.position)
        plan, config, method = self.plan, self.plan.config, self.method
        row: dict[str, Any] = {"epoch": self.epoch + 1, **seen}
        if len(plan.val):
            at_once = -(-config.batch_size // self.world.size)
            model, weights = self.eval_model, plan.class_weights
            row |= validate(model, plan.val, method, config.val_steps, config.seed, at_once, self.world, weights)
            # While ε still grows, training sees a weaker attack than validation.
            last = (self.epoch + 1) * self._steps_per_epoch - 1
            if config.on_divergence != "ignore" and eps_scale(config, last, self._total_steps) == 1.0:
                classes = plan.train.classes or plan.spec.classes
                check_catastrophic_overfitting(row, self.best.get("metrics", {}), len(plan.val), classes)
        row |= {"lr": float(self.optimization.lr), "seconds": self.seconds, "examples_per_second": rate}
        # What came before the method's weights were on is another method's network, however well it does.
        attacks = method.attack is not None
        first = not self.best or self.best["epoch"] < method.first_full_epoch <= self.epoch
        better = first or score(row, attacks) > score(self.best["metrics"], attacks)
        if better:
            self.best = {"epoch": self.epoch, "metrics": row}
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.eval_model.state_dict().items()}
        self.world.on_main_process(lambda: self._export(row, better))
        self.callbacks.call("on_epoch_end", self, row)
        self.optimization.end_epoch()
        self.epoch, self.step = self.epoch + 1, 0
        self.metrics = EpochMetrics(self.device)
        self.save()
        if self.epoch % self.report_every == 0 or self.finished:
            display.line(epoch_line(row, config.epochs, better and len(plan.val) > 0))

    def _export(self, row: dict[str, Any], better: bool) -> None:
        if self.folder is None:
            return
        about = {**self.plan.to_dict(), "has_reject_class": self.method.extra_outputs > 0, "metrics": row, **self._numerics()}
        weights = {"last": self.eval_model.state_dict()} | ({"best": self.best_weights} if better else {})
        for which, tensors in weights.items():
            card = {"which": which, "epoch": self.epoch + 1, **about, "machine": machine(self.device)}
            save_model(self.folder / which, tensors, card)

    def _numerics(self) -> dict[str, Any]:  # what fixes how results are rounded
        assert self._policy is not None
        return {"precision": self._policy.precision, "compiled": self._policy.compiled, "processes": self.world.size}

    def _rollback(self, problem: str) -> str:
        """Go back to the best weights so far, and begin the epoch again with half the learning rate. Returns what to say.

        Raises UserError if that is not asked for, or does not help.
        """
        n_rollbacks = self.optimization.n_rollbacks
        if self.plan.config.on_divergence != "rollback" or not self.best or n_rollbacks == _MOST_ROLLBACKS:
            kept = self.folder is not None and self.epoch > 0
            saved = f"; the last good checkpoint, of epoch {self.epoch}, is in {self.folder}" if kept else ""
            again = f", after {n_rollbacks} returns to earlier weights" if n_rollbacks else ""
            advice = "Try a lower lr, a stronger training attack, or go on with --on-divergence rollback"
            self.world.raise_if_any(f"{problem}{again}{saved}. {advice}")
        self.model.load_state_dict(self.best_weights)
        if self.ema is not None:
            self.ema.module.load_state_dict(self.best_weights)
        self.optimization.restart_epoch()
        self.metrics, self.step = EpochMetrics(self.device), 0
        return f"{problem}; going on from the weights of epoch {self.best['epoch'] + 1} with half the learning rate"

    def save(self) -> None:
        """Write a checkpoint; by all processes together. Raises UserError if it cannot be written."""
        if self.folder is not None:
            folder, state = self.folder, self.state_dict()
            self.world.on_main_process(lambda: save(folder, self.plan.to_dict(), state))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a training needs to go on exactly; by all processes together. ``local`` has what each has of its own.

        Raises TrainingDiverged if the loss is not finite.
        """
        metrics = self.metrics.total(self.world)
        require_finite(metrics.means()["loss"], self.position)
        local: dict[str, Any] = {"callbacks": self.callbacks.state_dict(), "rng": get_rng_state(self.device)}
        local["method"] = self.method.local_state()
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            **self._numerics(),
            **{name: part.state_dict() for name, part in self._stateful().items()},
            "metrics": metrics.state_dict(),
            "method": dict(self.method.state_dict()),
            "local": self.world.all_gather_object(local),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; by all processes together. What is local begins anew with another number of processes."""
        same = state["processes"] == self.world.size
        local = state["local"][self.world.rank if same else 0]
        self.set_precision(state["precision"], state["compiled"])
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        self.metrics.load_state_dict(state["metrics"], factor=int(self.world.is_main))
        self.epoch, self.step, self.seconds = int(state["epoch"]), int(state["step"]), float(state["seconds"])
        if self.epoch:  # then one is the best
            metrics = {name: float(value) for name, value in state["best"]["metrics"].items()}
            self.best = {"epoch": int(state["best"]["epoch"]), "metrics": metrics | {"epoch": int(metrics["epoch"])}}
            score(metrics, self.method.attack is not None)  # has all that the next epochs will be compared with
            like, best = self.eval_model.state_dict(), state["best_weights"]
            self.best_weights = {name: torch.empty_like(like[name], device="cpu").copy_(best[name]) for name in like}
        self.method.load_state_dict(self._moved(state["method"]))
        self.method.load_local_state(self._moved(local["method"]) if same else {})
        self.callbacks.load_state_dict(local["callbacks"])
        if same:
            set_rng_state(local["rng"], self.device)

    def _moved(self, state: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in state.items()}

    def _stateful(self) -> dict[str, Any]:  # the parts that keep their own state
        parts = {"model": self.model, "optimization": self.optimization, "ema": self.ema}
        return {name: part for name, part in parts.items() if part is not None}
