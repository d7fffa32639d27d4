import os
import subprocess
import sys

import numpy as np
import pytest

from helpers import long_or

MEBIBYTE = 2**20
SIDE, COUNT = 112, long_or(1_800, 5_000)  # 65 or 179 MiB of images
LIMIT = long_or(60, 165)

# Anonymous memory is limited to LIMIT MiB above what interpreter and torch take: the images do not fit, not even as bytes.
PROGRAM = """
import resource, sys
import numpy as np, torch
from torch import nn
import torch._dynamo
import hauberk as hb
import hauberk.training, hauberk.evaluation

torch.set_num_threads(1)
x = np.load(sys.argv[1], mmap_mode="r")
y = np.arange(len(x)) % 3
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (taken + int(sys.argv[2]) * 2**20,) * 2)
try:
    torch.from_numpy(np.array(x))
    raise SystemExit("the limit does not hold")
except MemoryError:
    pass
model = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(147, 3))
how = {"threat": hb.Linf("4/255"), "quiet": True}
hb.train(model, (x, y), method="fgsm-at", epochs=1, batch_size=4, val_size=20, val_steps=1, **how)
found = hb.evaluate(model, (x, y), attacks=["fgsm"], batch_size=4, diagnostics="cheap", **how)
print(found.n)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_data_larger_than_memory_is_trained_on_and_evaluated_from_disk(tmp_path):
    path = tmp_path / "images.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (COUNT, 3, SIDE, SIDE))
    images[::7] = 255
    del images
    assert path.stat().st_size > (LIMIT + 4) * MEBIBYTE
    words = [sys.executable, "-c", PROGRAM, str(path), str(LIMIT)]
    at_once = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "3000000"
    }  # give freed memory back, so that the limit is about what is used
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=at_once)
    assert done.stdout.split()[-1:] == [str(COUNT)], done.stderr[-2000:]
