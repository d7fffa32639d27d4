"""Coverage-guided fuzzing of everything that reads files, with atheris (pip install atheris).

python tests/system/fuzz_readers.py READER [libFuzzer's options, e.g. -max_total_time=600]

A reader may return something or raise UserError in one line; anything else, a hang of 10 s, or 2 GiB of memory is a finding.
"""

import gzip
import json
import pickle
import struct
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import numpy as np
import torch

with atheris.instrument_imports(include=["hauberk"]):
    import hauberk as hb
    from hauberk.core.io import read_json, read_tensors, write_state
    from hauberk.data.readers import read_cifar_batch, read_files, read_idx
    from hauberk.evaluation import partial_result
    from hauberk.methods import get_method_spec
    from hauberk.models import ModelSpec
    from hauberk.threat import threat_from_dict
    from hauberk.training import resume
    from hauberk.training.export import save_model

FOLDER = Path(tempfile.mkdtemp())
SPEC = ModelSpec("mlp", (4,), 3)


def put(name, raw):
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return path


def card(raw):
    path = put("best.json", raw)
    hb.load(path)
    content = read_json(path)
    threat_from_dict(content["threat"]) if isinstance(content.get("threat"), dict) else None
    name = content.get("method", {}).get("name") if isinstance(content.get("method"), dict) else None
    get_method_spec(name) if isinstance(name, str) else None


def plain(raw):
    hb.load(put("plain.pth", raw), model=torch.nn.Linear(4, 3))


def weights(raw):
    put("best.safetensors", raw)
    put("weights.json", json.dumps(read_json(FOLDER / "best.json") | {"weights_digest": None}).encode())
    hb.load(FOLDER / "weights.json")


def verdicts(raw):
    head, _, lines = raw.partition(b"\0")
    put("evaluation/plan.json", head)
    put("evaluation/verdicts-0.jsonl", lines)
    str(partial_result(FOLDER / "evaluation"))


def run(raw):
    """Of a run to go on with; its data are not there, so that nothing is trained."""
    put("run/run.json", raw)
    resume(FOLDER / "run", quiet=True)


def seeds():
    """One valid file for each reader."""
    threat = hb.Linf("8/255")
    settings = {"model": SPEC.to_dict(), "threat": threat.to_dict(), "method": hb.method("trades", threat).to_dict()}
    save_model(FOLDER / "best", SPEC.build().state_dict(), {**settings, "data": {"name": "digits"}})
    write_state(FOLDER / "state", {"weight": torch.zeros(2), "step": 1})
    torch.save(torch.nn.Linear(4, 3).state_dict(), FOLDER / "plain.pth")
    rgb = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    plan = {"suite": "quick", "stages": {"fgsm": []}, "n": 2, "seed": 0}
    lines = [{"attack": "clean", "i": i, "label": i, "predicted": i, "margin": 1.0, "right": True} for i in range(2)]
    stored = {"format": "hauberk-run/2", **settings, "data": {"name": "mnist", "folder": "nowhere"}, "settings": {"epochs": 1}}
    return {
        "card": (FOLDER / "best.json").read_bytes(),
        "weights": (FOLDER / "best.safetensors").read_bytes(),
        "plain": (FOLDER / "plain.pth").read_bytes(),
        "state": (FOLDER / "state").read_bytes()[48:],
        "cifar": pickle.dumps(rgb, protocol=2),
        "idx": b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 3) + bytes(18),
        "gzip": gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 9) + bytes(9)),
        "eps": b"8/255",
        "verdicts": json.dumps(plan).encode() + b"\0" + "\n".join(map(json.dumps, lines)).encode(),
        "run": json.dumps(stored).encode(),
    }


READERS = {
    "card": card,
    "weights": weights,
    "plain": plain,
    "state": lambda raw: read_tensors(raw, FOLDER / "state"),
    "cifar": lambda raw: read_cifar_batch(raw, "batch"),
    "idx": lambda raw: read_idx(raw, "images"),
    "gzip": lambda raw: [read_idx(content, path) for path, content in read_files([put("images.gz", raw)], None)],
    "eps": lambda raw: hb.Linf(raw.decode(errors="replace")),
    "verdicts": verdicts,
    "run": run,
}


def main():
    name, *options = sys.argv[1:]
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(seeds()[name])

    warnings.simplefilter("ignore")  # torch's, about other versions of pickle

    def once(raw):
        try:
            READERS[name](raw)
        except hb.UserError as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {error}") from error

    atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=2048", "-max_len=131072", *options, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
