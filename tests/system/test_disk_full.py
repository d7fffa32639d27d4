"""A disk that fills up and a folder that goes away, in the middle of real runs."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

import hauberk as hb
from hauberk.core.io import read_state
from hauberk.experiments import Experiment, run_experiment
from hauberk.experiments.studies import StudyResult
from hauberk.models import ModelSpec
from hauberk.training.export import save_model

# No file may grow past a limit that the first checkpoints keep: as on a full disk, writing fails in the middle of a file.
TRAINING = """
import os, resource, shutil, sys
import torch
import hauberk as hb

class Data:
    fetched = 0
    def __len__(self):
        return 60
    def __getitem__(self, i):
        Data.fetched += 1
        if Data.fetched == 300:
            trouble()
        y = i % 5
        return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(i)) * 0.3 + 0.12 * y, y

def trouble():
    if sys.argv[2] == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    elif sys.argv[2] == "readonly":
        os.chmod(sys.argv[1], 0o555)
        if os.getuid() == 0:  # whom permissions do not stop
            os.seteuid(65534)
    else:
        shutil.move(sys.argv[1], sys.argv[1] + "-moved")

try:
    hb.train(
        "small-cnn", Data(), threat=hb.Linf("8/255"), out=sys.argv[1], epochs=30, batch_size=16, val_size=12, val_steps=1,
        threads=1, quiet=True,
    )
except hb.UserError as error:
    raise SystemExit(f"refused: {error}")
"""

EVALUATION = """
import resource, sys
import torch
import hauberk as hb
from hauberk.models import ModelSpec

torch.manual_seed(0)
model = ModelSpec("mlp", (4,), 3).build()
x, how = torch.rand(400, 4), {"diagnostics": "cheap", "quiet": True}
y = model(x).argmax(1)
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
try:
    found = hb.evaluate(model, (x, y), threat=hb.Linf(0.01), attacks=["fgsm", "pgd-20"], out=sys.argv[1], **how)
except hb.UserError as error:
    raise SystemExit(f"refused: {error}")
print(found.robust_accuracy)
"""

EXPORT = """
import resource, sys
from pathlib import Path
import torch
import hauberk as hb
from hauberk.models import ModelSpec
from hauberk.training import export_model
from hauberk.training.export import save_model

folder, spec = Path(sys.argv[1]), ModelSpec("small-cnn", (1, 8, 8), 10)
save_model(folder / "net", spec.build().state_dict(), {"model": spec.to_dict(), "data": {"name": "digits"}})
export_model(folder / "net.json", folder / f"model.{sys.argv[2]}")
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
for name in ("model", "new"):
    try:
        export_model(folder / "net.json", folder / f"{name}.{sys.argv[2]}")
    except hb.UserError as error:
        print(f"refused: {error}")
"""

KEEPING = """
import resource, sys
import torch
import hauberk as hb
from hauberk.models import ModelSpec

torch.manual_seed(0)
model, x = ModelSpec("mlp", (400,), 3).build(), torch.rand(100, 400)
if sys.argv[2] == "limited":
    resource.setrlimit(resource.RLIMIT_FSIZE, (60000, resource.RLIM_INFINITY))
how = {"attacks": ["fgsm"], "diagnostics": "cheap", "quiet": True, "save_adversarials": True, "out": sys.argv[1]}
try:
    hb.evaluate(model, (x, model(x).argmax(1)), threat=hb.Linf(0.01), **how)
except hb.UserError as error:
    raise SystemExit(f"refused: {error}")
"""


def run(program, *words):
    # A measurement of coverage would want to write to that disk, too.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)


def test_a_full_disk_or_a_lost_or_read_only_folder_stops_training_with_one_line_and_the_checkpoint_before(tmp_path):
    done = run(TRAINING, str(tmp_path / "full"), "full")
    assert "refused: cannot write" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    state, warning = read_state(tmp_path / "full" / "state.ckpt")
    assert state["epoch"] >= 1
    assert not warning
    done = run(TRAINING, str(tmp_path / "lost"), "lost")
    assert f"{tmp_path / 'lost'} is gone, with what was saved in it unless it was moved" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert read_state(tmp_path / "lost-moved" / "state.ckpt")[0]["epoch"] >= 1
    done = run(TRAINING, str(tmp_path / "locked"), "readonly")
    (tmp_path / "locked").chmod(0o755)
    assert "Permission denied; what was saved before is intact" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert read_state(tmp_path / "locked" / "state.ckpt")[0]["epoch"] >= 1


def test_a_full_disk_stops_an_evaluation_with_one_line_and_it_goes_on_later(tmp_path):
    done = run(EVALUATION, str(tmp_path / "full"), "full")
    assert "refused: cannot write" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    again, whole = run(EVALUATION, str(tmp_path / "full"), ""), run(EVALUATION, str(tmp_path / "whole"), "")
    assert again.returncode == 0, again.stderr
    assert again.stdout == whole.stdout
    records = [(tmp_path / name / "verdicts-0.jsonl").read_text().splitlines() for name in ("full", "whole")]
    found = [{(r["attack"], r["i"]): r for r in map(json.loads, lines) if r["attack"] != "cost"} for lines in records]
    assert found[0] == found[1]


@pytest.mark.parametrize("ending", ["pth", "pt2", "onnx", "safetensors"])
def test_a_full_disk_stops_an_export_with_one_line_and_no_part_of_a_file(tmp_path, ending):
    if ending == "onnx":
        pytest.importorskip("onnxscript")
    done = run(EXPORT, str(tmp_path), ending)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: cannot write") == done.stdout.count("\n") == 2, done.stdout
    assert (tmp_path / f"model.{ending}").stat().st_size > 5000  # what was there before is whole
    card = {"model.json"} if ending == "safetensors" else set()
    assert {path.name for path in tmp_path.iterdir()} == {"net.json", "net.safetensors", f"model.{ending}"} | card


def test_of_files_that_belong_together_all_are_written_or_none(tmp_path):
    net = ModelSpec("mlp", (4,), 3).build().state_dict()
    save_model(tmp_path / "net", net, {"model": {"name": "mlp"}})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "net.json.part").mkdir()  # in the way of the card
    other = {name: tensor + 1 for name, tensor in net.items()}
    with pytest.raises(hb.UserError, match="cannot write"):
        save_model(tmp_path / "net", other, {"model": {"name": "another"}})
    (tmp_path / "net.json.part").rmdir()
    (tmp_path / "net.safetensors.part").mkdir()  # in the way of the weights
    with pytest.raises(hb.UserError, match="cannot write"):
        save_model(tmp_path / "net", other, {"model": {"name": "another"}})
    (tmp_path / "net.safetensors.part").rmdir()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_room_for_adversarial_examples_is_one_line_before_the_first_attack(tmp_path):
    done = run(KEEPING, str(tmp_path / "full"), "limited")
    assert done.returncode == 1, done.stderr  # not ended by a signal
    assert "refused: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "full").glob("adversarials*"))
    again = run(KEEPING, str(tmp_path / "full"), "")
    assert again.returncode == 0, again.stderr


def test_a_disk_without_room_for_adversarial_examples_kills_nobody(tmp_path):
    space = tmp_path / "disk"
    space.mkdir()
    mount = f"mount -t tmpfs -o size=100k tmpfs {space}"
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    script = f'{mount} && "$@"; status=$?; ls {space}/evaluation; exit $status'
    command = [*apart, "sh", "-c", script, "sh", sys.executable, "-c", KEEPING, str(space / "evaluation"), ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    assert "refused: cannot write" in done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "adversarials" not in done.stdout


def test_where_nothing_can_be_set_aside_zeros_are_written(tmp_path, monkeypatch):
    from hauberk.core.io import write_zeros

    def refuse(file, begin, size):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    for name in ("set aside", "written"):
        write_zeros(tmp_path / name, b"head", 3_000_000)
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    contents = [(tmp_path / name).read_bytes() for name in ("set aside", "written")]
    assert contents[0] == contents[1] == b"head" + bytes(3_000_000 - 4)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(hb.UserError, match="cannot write to"):
        run_experiment(Experiment("at", 0), tmp_path / "file")
    result = StudyResult("found", [], [{"a": 1}], study="restarts")
    with pytest.raises(hb.UserError, match="cannot write to"):
        result.save(tmp_path / "file" / "study", lambda found: None)
