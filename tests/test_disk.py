"""A disk that fills up and a folder that goes away, in the middle of real runs."""

import json
import os
import subprocess
import sys

from hauberk.files import read_state

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
x, how = torch.rand(400, 4), {"probes": False, "quiet": True}
y = model(x).argmax(1)
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
try:
    found = hb.evaluate(model, (x, y), threat=hb.Linf(0.01), attacks=["fgsm", "pgd-20"], out=sys.argv[1], **how)
except hb.UserError as error:
    raise SystemExit(f"refused: {error}")
print(found.robust_accuracy)
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
    assert "refused: cannot write" in done.stderr, done.stderr
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
