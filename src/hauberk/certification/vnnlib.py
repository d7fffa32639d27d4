"""Hand-over to other verifiers: the questions as VNN-LIB beside the model as ONNX, and what the verifier said, read back.

The files are those of the verification competition (VNN-COMP): ``model.onnx``, one ``.vnnlib`` file for each example, and
``instances.csv``, which names both and a time limit in each row. α,β-CROWN, neuralsat, Marabou and others read them.
"""

import csv
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks.model.check_model import check_model
from hauberk.attacks.model.frozen_model import frozen_model
from hauberk.certification.bounds.region import Region
from hauberk.core.arguments import checked
from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import json_roundtrip, make_folder, read_json, write_atomically, write_json
from hauberk.core.numerics import float32_mode
from hauberk.data import IndexedDataset, as_dataset, data_digest, fetch_for
from hauberk.models import model_id
from hauberk.models.programs import onnx_program
from hauberk.threat import ThreatModel
from hauberk.threat.batch import check_inputs

MODEL, INSTANCES, ABOUT = "model.onnx", "instances.csv", "instances.json"
FORMAT = "hauberk-vnnlib/1"
PROVED = {"unsat", "holds", "verified", "safe"}  # there is no adversarial example
OPEN = {"sat", "violated", "unsafe", "unknown", "timeout", "error", "falsified"}  # there may be one


@checked
def export_vnnlib(
    model: nn.Module,
    test_set: Any,
    out: str | Path,
    *,
    threat: ThreatModel,
    examples: Tensor | None = None,
    n: int | None = None,
    seconds: int = 100,
) -> Path:
    """Write what is to be proved for each example, for a verifier of your choice.

    Each question is whether there is an input in the example's box for which another class has at least the label's logit:
    "unsat" says that there is none, so that the example is robust. The box is that of the threat model, with each bound moved
    out by the rounding that counts as inside. Verifiers reason about real numbers; what they prove holds up to the rounding of
    the network itself.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
        test_set: as for :func:`hauberk.certify`.
        out: folder to write to.
        threat: in L∞, since VNN-LIB 1.0 knows boxes only; with one ε per feature, frozen and one-way features where given.
        examples: which examples, (k,) int64; None for the first n.
        n: how many; None for all.
        seconds: time limit that is written beside each question.

    Returns:
        The folder.

    Raises:
        UserError: for another norm, an index that is not there, a model that is refused by the ONNX exporter, and a folder that
            cannot be written to.
    """
    if not threat.norm.is_box:
        raise UserError(f"VNN-LIB says boxes only, so questions about {threat.norm} cannot be handed over")
    source, folder = as_dataset(test_set), Path(out)
    which = torch.arange(max(len(source) if n is None else n, 0)) if examples is None else examples.flatten().long().cpu()
    if len(which) == 0 or int(which.min()) < 0 or int(which.max()) >= len(source):
        raise UserError(f"examples and n must be of the {len(source)} in the test set, and at least one")
    first_x, first_y = fetch_for(model, source, which[:3])
    check_inputs(first_x, first_y, threat, source.classes)
    classes = check_model(model, first_x, first_y)
    make_folder(folder / "vnnlib")
    like = first_x[torch.arange(3) % len(first_x)]
    with frozen_model(model), float32_mode("fp32"):
        write_atomically(folder / MODEL, onnx_program(model, like))
    rows, about = [], _about(model, source, threat)
    for index in which.tolist():
        x, y = fetch_for(model, source, torch.tensor([index]))
        check_inputs(x, y, threat, source.classes)
        low, high = (bound[0].flatten().tolist() for bound in Region(threat.around(x)).interval)
        name = f"vnnlib/{index}.vnnlib"
        write_atomically(folder / name, _question(low, high, int(y), classes, f"example {index}, {threat}").encode())
        rows.append(f"{MODEL},{name},{seconds}")
    write_atomically(folder / INSTANCES, ("\n".join(rows) + "\n").encode())
    write_json(folder / ABOUT, about | {"examples": which.tolist()})
    return folder


@checked
def read_verdicts(model: nn.Module, test_set: Any, folder: str | Path, results: str | Path, *, threat: ThreatModel) -> Tensor:
    """Read what a verifier has proved of the questions in a folder.

    Args:
        model: that the questions are about, with the weights it had.
        test_set: likewise.
        folder: that :func:`export_vnnlib` wrote.
        results: table of the verdicts, comma-separated, as VNN-COMP's scripts write it: in each row a cell that ends in
            ``.vnnlib``, and one that is "unsat" ("holds", "verified"), "sat" ("violated"), "unknown", "timeout" or "error".
        threat: that the questions are about.

    Returns:
        (N,) bool, which examples of the test set were proved robust. An example that is said to be broken is just not proved:
        an attack has to show it.

    Raises:
        UserError: if the folder's questions are about another model, threat model or test set, if the results name questions
            that were never asked, give two verdicts on one, or a word that is no verdict.
    """
    source, folder = as_dataset(test_set), Path(folder)
    asked = read_json(folder / ABOUT)
    for key, value in json_roundtrip(_about(model, source, threat)).items():
        if asked.get(key) != value:
            raise UserError(f"the questions in {folder} are about another {_WORDS[key]}")
    if not isinstance(asked.get("examples"), list):
        raise UserError(f"{folder / ABOUT} does not say which examples were asked about")
    try:
        rows = list(csv.reader(Path(results).read_text().splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {results}: {in_one_line(error)}") from error
    said: dict[int, str] = {}
    for cells in rows:
        cells = [cell.strip() for cell in cells]
        names = [Path(cell).stem for cell in cells if cell.endswith(".vnnlib")]
        if not names:  # a head, or nothing
            continue
        words = [word for word in map(str.lower, cells) if word in PROVED | OPEN]
        index = int(names[0]) if names[0].isdecimal() else -1
        if index not in asked["examples"]:
            raise UserError(f"{results} names {names[0]}.vnnlib, which is no question in {folder}")
        if len(words) != 1:
            raise UserError(f"{results} must have one verdict on {names[0]}.vnnlib, such as unsat, sat or timeout")
        if said.setdefault(index, words[0]) != words[0]:
            raise UserError(f"{results} has two verdicts on {names[0]}.vnnlib: {said[index]} and {words[0]}")
    certified = torch.zeros(len(source), dtype=torch.bool)
    certified[[index for index, word in said.items() if word in PROVED]] = True
    return certified


_WORDS = {"format": "format of this program", "model_id": "model", "threat": "threat model", "data_digest": "test set"}


def _about(model: nn.Module, source: IndexedDataset, threat: ThreatModel) -> dict[str, Any]:
    """What binds questions, and so verdicts, to what they are about."""
    return {"format": FORMAT, "model_id": model_id(model), "threat": threat.to_dict(), "data_digest": data_digest(source)}


def _question(low: list[float], high: list[float], label: int, classes: int, about: str) -> str:
    """One example as VNN-LIB: inputs are X_j, logits Y_k; satisfied by an adversarial example."""
    lines = [f"; {about}, label {label}"]
    lines += [f"(declare-const X_{j} Real)" for j in range(len(low))] + [f"(declare-const Y_{k} Real)" for k in range(classes)]
    for j, (least, most) in enumerate(zip(low, high, strict=True)):
        lines += [f"(assert (>= X_{j} {_decimal(least)}))", f"(assert (<= X_{j} {_decimal(most)}))"]
    others = [f"(and (>= Y_{k} Y_{label}))" for k in range(classes) if k != label]
    return "\n".join([*lines, f"(assert (or {' '.join(others)}))", ""])


def _decimal(value: float) -> str:
    """A float64 exactly, without an exponent, which some parsers do not read."""
    return format(Decimal(value), "f")
