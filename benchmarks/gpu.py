"""What docs/performance.md wants from a GPU, in pieces that fit a machine that is lent for minutes.

    python benchmarks/gpu.py --data-dir FOLDER --out KEPT --minutes 8      (again and again, until it says that all is done)
    python benchmarks/gpu.py --parts steps epochs --out KEPT               (these parts alone; they need no data)
    python benchmarks/gpu.py --parts report --out KEPT                     (anywhere: writes the results again)

Each piece (a method with a batch size and a form, a training, an AutoAttack) is kept in KEPT/pieces as soon as it is done, and
is not made again while its file is there, nor is a failed one. After --minutes, or at Ctrl-C, a training or an AutoAttack under
way saves its state, and the next call goes on with it; any other piece under way is lost. So that few are, none but the first
of a call is begun in the last half minute to two minutes.

What has to travel from a machine that does not stay: KEPT/pieces, and of KEPT/networks/NAME what AutoAttack needs elsewhere.
That is best.json with the best weights of the training, those of convolutions and linear layers in half precision, in parts
below 16 MiB; and the verdicts so far, which are of exactly these weights. KEPT/runs has what a training needs to go on, some
200 MB for ResNet-18: one that is longer than a machine is lent cannot be made there. The seconds of an epoch say which --epochs
fit.

At the end of each call benchmarks/results/gpu.md and gpu.json, and the section of docs/performance.md, are written from all
pieces.
"""

import gc
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from common import DOCS, STOPPED, Options, evaluated, first, method_at_once, parse, trained, with_interval
from steps import CLASSES, HEAD, SHAPE, cells, compared, ratio

import hauberk as hb
from hauberk.core.distributed import usable_device
from hauberk.core.errors import first_line
from hauberk.core.io import machine, read_json, versions, write_atomically, write_json
from hauberk.data import DATASETS, load_data
from hauberk.evaluation import partial_result
from hauberk.evaluation.records import PLAN
from hauberk.methods import get_method_spec
from hauberk.training.export import read_card, save_model

Part = Literal["tests", "steps", "epochs", "mail-trades", "trades-awp", "autoattack", "other-steps", "other-epochs", "report"]
PARTS: tuple[Part, ...] = get_args(Part)
# Seconds without which no piece of a part is begun; a minute for the others.
NEEDED = {"tests": 120, "autoattack": 30, "mail-trades": 30, "trades-awp": 30}
TRAININGS = {"mail-trades": "mail-trades", "trades-awp": "trades+awp"}
# Methods whose steps, and those whose epochs, are measured first.
STEPS = ("at", "mail-trades", "trades", "trades+awp", "mart", "mail-at", "gairat", "at+awp")
EPOCHS = STEPS[:4]
OTHERS = [name for name in hb.list_methods() if name not in STEPS and not get_method_spec(name).needs_teacher]
OPEN = "Open: no figure of this page comes from a GPU yet."
BEGIN, END = "<!-- written by benchmarks/gpu.py -->\n", "<!-- until here -->\n"
PART_SIZE = 15 * 2**20  # bytes of a file of weights
FLOOR, PUBLIC, ROBUST, MINUTES = 1.05, 5.0, 0.506, 30.0  # the goals


@dataclass(frozen=True)
class Gpu(Options):
    """What to run; smaller numbers try the command itself on a CPU."""

    parts: tuple[Part, ...] = PARTS
    """What to measure, in this order."""
    minutes: float = 8.0
    """Stop and save after so many."""
    out: Path = Path("runs/gpu")
    """Folder of pieces, networks and runs."""
    results: Path = Path(__file__).parent / "results"
    """Folder of gpu.md and gpu.json."""
    page: Path = DOCS / "performance.md"
    """Page whose section is written."""
    methods: tuple[str, ...] = (*STEPS, *OTHERS)
    """Methods of steps and epochs."""
    batches: tuple[int, ...] = (128, 512)
    """Examples of a step; the first is the trainings'."""
    forms: tuple[str, ...] = ("bf16", "bf16+compile", "tf32", "fp32")
    """Of Hauberk's steps; with "+compile", CUDA graphs. Epochs are of the first two."""
    rounds: int = 5
    """Times each step is timed."""
    model: str = "resnet18"
    """Network."""
    train: int = 50_000
    """Training images, random ones for the seconds of an epoch."""
    test: int = 10_000
    """Test images; a tenth of them are evaluated first."""
    epochs: int = 40
    """Epochs of a training."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether trainings compile."""
    pytest: str = "tests -k cuda -n 4"
    """Which tests are the device's, as pytest's options."""
    test_minutes: float = 3.0
    """Stop the tests after so many."""
    device: str = "cuda"
    """Where."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""


def main() -> None:
    """Measure until the time is over, and write down what is there."""
    options = parse(Gpu)
    end = time.monotonic() + 60 * options.minutes
    alarm = threading.Timer(60 * options.minutes, os.kill, (os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    try:
        whole = measure(options, lambda: end - time.monotonic())
    except KeyboardInterrupt:
        whole = False
    finally:
        alarm.cancel()
        report(options)
    if not whole:
        raise SystemExit(STOPPED)
    print("all is done:", options.results / "gpu.md")


def measure(options: Gpu, left: Callable[[], float]) -> bool:
    """Make the pieces that are missing, as long as there are seconds ``left``; returns whether all are made."""
    begun = False
    for part in options.parts:
        for name, about, work in pieces(part, options, left):
            kept = options.out / "pieces" / f"{name}.json"
            if kept.exists():
                continue
            if begun and left() < NEEDED.get(part, 60):
                return False
            begun, device = True, usable_device(options.device)
            print(f"{name}, {left():.0f} s left", flush=True)
            try:
                found = work()
            except Exception as error:  # the other pieces are worth having without this one
                traceback.print_exc()
                found = {"failed": first_line(error)[:200]}
            if found:
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_json(kept, {"part": part, **about, **found, "machine": machine(device), "versions": versions()})
            torch._dynamo.reset()  # frees the memory of graphs
            gc.collect()
            if device.type == "cuda":
                torch.cuda.synchronize()  # raises where an error has left the device useless to this process
                torch.cuda.empty_cache()
    return True


def pieces(
    part: str, options: Gpu, left: Callable[[], float] = float
) -> Iterator[tuple[str, dict[str, Any], Callable[[], dict[str, Any]]]]:
    """What a part consists of, in order of worth: the name of each piece, what it is about, and how it is made."""
    measured, work = (STEPS, step) if part.endswith("steps") else (EPOCHS, epoch)
    if part == "tests":
        yield part, {}, partial(device_tests, options, left)
    elif part in TRAININGS:
        yield part, {"method": TRAININGS[part]}, partial(training, options, part)
    elif part == "autoattack":
        for n in sorted({max(1, options.test // 10), options.test}):
            for name in TRAININGS:
                yield f"autoattack-{name}-{n}", {"method": TRAININGS[name], "n": n}, partial(autoattack, options, name, n)
    elif part != "report":
        for batch in options.batches:
            for form in options.forms if work is step else options.forms[:2]:
                for method in options.methods:
                    if (method in measured) != part.startswith("other"):
                        about = {"method": method, "batch": batch, "form": form}
                        name = f"{work.__name__}-{method}-{batch}-{form}".replace("+", "-")
                        yield name, about, partial(work, options, **about)


def device_tests(options: Gpu, left: Callable[[], float]) -> dict[str, Any]:
    """The tests of the device, in a process of their own; the whole log is in tests.log."""
    words = [sys.executable, "-m", "pytest", *shlex.split(options.pytest), "-rfE", "--continue-on-collection-errors"]
    log, begun, status = options.out / "tests.log", time.perf_counter(), None
    options.out.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        limit = max(30.0, min(60 * options.test_minutes, left() - 15))
        try:
            root = Path(__file__).parents[1]
            status = subprocess.run(words, cwd=root, stdout=file, stderr=subprocess.STDOUT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {limit:.0f} s\n")
    return {"status": status, "seconds": time.perf_counter() - begun, "log": log.read_text().splitlines()[-40:]}


def step(options: Gpu, method: str, batch: int, form: str) -> dict[str, Any]:
    """A step beside its floor and the public code's."""
    return compared(method, form, options.model, batch, options.rounds, torch.device(options.device))


class Clock:
    """A callback that notes when the steps of an epoch, and then its validation, have ended."""

    def __init__(self) -> None:
        self.stepped: list[float] = []
        self.ended: list[float] = []

    def on_step_end(self, trainer: Any, output: Any) -> None:
        if trainer.step + 1 == trainer.plan.steps_per_epoch:
            if trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)
            self.stepped.append(time.perf_counter())

    def on_epoch_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        self.ended.append(time.perf_counter())


def epoch(options: Gpu, method: str, batch: int, form: str) -> dict[str, Any]:
    """Seconds of the second epoch on random images; the first one warms up."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(256, (options.train, *SHAPE), dtype=torch.uint8, generator=draw)
    y = torch.randint(CLASSES, (options.train,), generator=draw)
    precision, _, compiled = form.partition("+")
    clock, bound = Clock(), method_at_once(method, hb.Linf("8/255"))
    how: dict[str, Any] = {"epochs": 2, "batch_size": batch, "lr": 0.01, "augmentation": "crop-flip", "on_divergence": "ignore"}
    how |= {"precision": precision, "compile": "on" if compiled else "off", "device": options.device, "quiet": True}
    if hb.train(options.model, (x, y), method=bound, callbacks=[clock], **how).interrupted:
        raise SystemExit(STOPPED)
    return {"training": clock.stepped[1] - clock.ended[0], "validation": clock.ended[1] - clock.stepped[1]}


def training(options: Gpu, name: str) -> dict[str, Any]:
    """A training with the schedule preset express; its best weights are kept in half precision, in files that can travel."""
    run, kept = options.out / "runs" / name, options.out / "networks" / name
    run.mkdir(parents=True, exist_ok=True)
    train_set, threat = first(options.data, "train", options.data_dir, options.train), hb.Linf(DATASETS[options.data].eps)
    how: dict[str, Any] = {"epochs": options.epochs, "batch_size": options.batches[0], "schedule_preset": "express"}
    how |= {"precision": "bf16", "compile": options.compile, "device": options.device, "method": TRAININGS[name]}
    clock, begun = run / "wall.json", time.perf_counter()
    spent = read_json(clock)["seconds"] if clock.exists() else 0.0
    try:
        card = trained(run, options.model, train_set, threat, **how)
    finally:
        spent += time.perf_counter() - begun
        write_json(clock, {"seconds": spent})
    kept.mkdir(parents=True, exist_ok=True)
    keep_weights(run, kept / "best")
    best = read_json(kept / "best.json")["metrics"]
    return {"epochs": options.epochs, "seconds": spent, "training": card["metrics"]["seconds"], "best": best}


def keep_weights(run: Path, path: Path) -> None:
    """Write the best weights of a run, matrices and kernels in half precision, with a card; and once more in parts."""
    card, _ = read_card(run)
    about = {key: value for key, value in card.items() if key not in ("format", "weights", "weights_digest", "versions")}
    weights = {key: value.half() if value.ndim > 1 else value for key, value in hb.load(run).state_dict().items()}
    save_model(path, weights, about)
    content = path.with_name("best.safetensors").read_bytes()
    for k, start in enumerate(range(0, len(content), PART_SIZE)):
        write_atomically(path.with_name(f"best.safetensors.{k:02}"), content[start : start + PART_SIZE])


def autoattack(options: Gpu, name: str, n: int) -> dict[str, Any]:
    """AutoAttack on the kept weights, on the device; nothing where there are none."""
    kept, test_set = options.out / "networks" / name, load_data(options.data, "test", options.data_dir)
    if not (kept / "best.json").exists():
        return {}
    if not (whole := kept / "best.safetensors").exists():
        write_atomically(whole, b"".join(part.read_bytes() for part in sorted(kept.glob("best.safetensors.??"))))
    how: dict[str, Any] = {"suite": "standard", "precision": "bf16", "batch_size": 500, "device": options.device}
    found = evaluated(kept, f"autoattack-{n}", test_set, hb.Linf(DATASETS[options.data].eps), n, **how)
    shown = ("clean_accuracy", "robust_accuracy", "interval", "by_attack", "diagnostics")
    return {key: found[key] for key in shown} | {"seconds": found["provenance"]["seconds"]}


def report(options: Gpu) -> None:
    """Write results and page from the pieces that are there; the page only from those that a GPU made."""
    kept = {path.stem: read_json(path) for path in (options.out / "pieces").glob("*.json")}
    usual = [name for part in PARTS for name, _, _ in pieces(part, Gpu())]
    order = [name for name in usual if name in kept] + sorted(kept.keys() - set(usual))
    kept = {name: kept[name] for name in order}
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / "gpu.json", kept)
    (options.results / "gpu.md").write_text("\n".join(["# Results of benchmarks/gpu.py", "", *section(options, kept)]) + "\n")
    by_gpu = {name: piece for name, piece in kept.items() if piece["machine"]["device"].startswith("cuda")}
    lines = section(options, by_gpu) if by_gpu else [OPEN]
    before, rest = options.page.read_text().split(BEGIN)
    options.page.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1])


def section(options: Gpu, kept: dict[str, dict[str, Any]]) -> list[str]:
    """Tables of all pieces, which goals hold, and what is missing or failed, as lines of Markdown."""
    there: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for piece in kept.values():
        if "failed" not in piece:
            there[piece["part"]].append(piece)
    made = {f"{p['versions']['date'][:10]}, {p['machine']['name']}, torch {p['versions']['torch']}" for p in kept.values()}
    lines = [f"{'; '.join(sorted(made))}. {options.model}.", ""]
    for piece in there["tests"]:
        said = [line for line in piece["log"] if line.startswith(("FAILED", "ERROR"))] + piece["log"][-1:]
        lines += [f"Tests of the device: {'; '.join(said)} (status {piece['status']}, {piece['seconds']:.0f} s).", ""]
    if steps := there["steps"] + there["other-steps"]:
        lines += [
            "A step in turns with the *public code*'s, with torch's own switches (on CUDA convolutions in TF32), and with the",
            "*floor*, the passes alone; medians of ratios. MiB: peak above what lay there before, Hauberk's and the public",
            "code's, without what captured graphs hold. Waits: of the host for the device, in a step.",
            "",
        ]
        rows, sides = [], ("ours", "public")
        for p in steps:
            seen = [f"{p[kind][side]:.0f}" if side in p.get(kind, {}) else "–" for kind in ("mib", "waits") for side in sides]
            rows.append([*known(p), *cells(p["seconds"], 1e-3), *seen])
        head = ["method", "batch", "form", *(name.format("ms") for name in HEAD)]
        head += ["MiB", "public code, MiB", "waits", "public code, waits"]
        lines += table(head, rows)
    if epochs := there["epochs"] + there["other-epochs"]:
        lines += [f"Seconds of an epoch of {options.train:,} images, in the training loop.", ""]
        rows = [[*known(p), f"{p['training']:.2f}", f"{p['validation']:.2f}"] for p in epochs]
        lines += table(["method", "batch", "form", "training, s", "validation, s"], rows)
    if trainings := [piece for part in TRAININGS for piece in there[part]]:
        lines += ["Trainings with the schedule preset `express`, minutes by the clock on the wall.", ""]
        times = [(f"{p['seconds'] / 60:.1f}", f"{p['training'] / 60:.1f}") for p in trainings]
        rows = [[*known(p), p["epochs"], *spent, p["best"]["epoch"]] for p, spent in zip(trainings, times, strict=True)]
        lines += table(["method", "epochs", "minutes", "of steps", "best epoch"], rows)
    if attacked := there["autoattack"]:
        lines += [
            "AutoAttack on their best weights; attacks in bfloat16, verdicts in float32; ! marks results with warnings.",
            "",
        ]
        rows = [[*known(p), f"{100 * p['clean_accuracy']:.1f}", with_interval(p), f"{p['seconds'] / 60:.1f}"] for p in attacked]
        lines += table(["method", "images", "NAT", "AutoAttack", "minutes"], rows)
    for plan in sorted(options.out.glob(f"networks/*/autoattack-*/{PLAN}")):
        if not plan.parent.with_suffix(".json").exists():
            said = "; ".join(str(partial_result(plan.parent)).splitlines())
            lines += [f"{plan.parent.name} of {plan.parents[1].name}, under way: {said}.", ""]
    lines += ["Goals on one H100 or H200:", "", *goals(there), "", "Missing or failed:", ""]
    for part in PARTS:
        names = [name for name, _, _ in pieces(part, options)]
        absent = sum(name not in kept for name in names)
        lines += [f"- {part}: {absent} of {len(names)} pieces missing"] if absent else []
        lines += [f"- {name} failed: {kept[name]['failed']}" for name in names if "failed" in kept.get(name, {})]
    return lines


def known(piece: dict[str, Any]) -> list[Any]:
    """Return what a piece is known by, as cells of a table."""
    return [f"`{piece['method']}`", *(piece[key] for key in ("batch", "form", "n") if key in piece)]


def table(names: list[str], rows: list[list[Any]]) -> list[str]:
    """Return the lines of a table, with an empty one after it."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in [names, *rows]]
    return [lines[0], "|" + "---|" * len(names), *lines[1:], ""]


def goals(there: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Which goals hold, and how far each is reached."""
    above, faster = {}, {}
    for piece in there["steps"]:
        method, seconds = f"`{piece['method']}` {piece['batch']}", piece["seconds"]
        above[f"{method} {piece['form']}"] = ratio(seconds, "ours", "floor")
        if "public" in seconds:
            faster[method] = max(faster.get(method, 0.0), ratio(seconds, "public", "ours"))
    minutes = {piece["method"]: piece["seconds"] / 60 for part in TRAININGS for piece in there[part]}
    # Of several evaluations of a training, the one with the most images comes last.
    robust = {piece["method"]: piece for piece in there["autoattack"] if piece["method"] in minutes}
    reached = any(found["robust_accuracy"] >= ROBUST and minutes[name] <= MINUTES for name, found in robust.items())
    said = "; ".join(f"`{name}` {with_interval(found)} in {minutes[name]:.1f} minutes" for name, found in robust.items())
    verdict = f"{'holds' if reached else 'does not hold'}: {said}" if robust else "open"
    return [
        goal(f"a step at most {FLOOR} × its floor", above, lambda value: value <= FLOOR, max),
        goal(
            f"its fastest form at least {PUBLIC:.0f} × as fast as the public code", faster, lambda value: value >= PUBLIC, min
        ),
        f"- AutoAttack {100 * ROBUST:.1f} within {MINUTES:.0f} minutes of training: {verdict}",
    ]


def goal(title: str, values: dict[str, float], holds: Callable[[float], bool], worst_of: Callable[..., str]) -> str:
    """Say whether something holds for all values, for how many, and what is farthest from it."""
    if not values:
        return f"- {title}: open"
    fine, worst = sum(map(holds, values.values())), worst_of(values, key=values.__getitem__)
    verdict = "holds" if fine == len(values) else "does not hold"
    return f"- {title}: {verdict}, {fine} of {len(values)}; worst {worst}, {values[worst]:.2f}"


if __name__ == "__main__":
    main()
