"""Files from anywhere: read, or refused in one line."""

import gzip
import json
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hauberk as hb
from hauberk.core.io import read_json, read_state, write_json, write_state
from hauberk.data.readers import read_cifar_batch, read_files, read_idx
from hauberk.data.tables.schema import parse_schema
from hauberk.evaluation import partial_result
from hauberk.experiments import find_results
from hauberk.models import ModelSpec
from hauberk.report import make_report
from hauberk.threat import threat_from_dict
from hauberk.training import resume
from hauberk.training.export import save_model
from helpers import long_or

TRIALS = long_or(40, 2000)
fuzz = settings(max_examples=TRIALS, deadline=None, suppress_health_check=list(HealthCheck))

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["8/255", "1e99999999", "Linf"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)

SPEC = ModelSpec("mlp", (4,), 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A card and its weights, as a run leaves them."""
    folder = tmp_path_factory.mktemp("run")
    threat = hb.Linf("8/255")
    method = hb.method("trades", threat)
    card = {"model": SPEC.to_dict(), "threat": threat.to_dict(), "method": method.to_dict(), "data": {"name": "digits"}}
    save_model(folder / "best", SPEC.build().state_dict(), card)
    return folder


def mutated(raw, cuts, changes):
    """Bytes cut short and changed here and there."""
    raw = bytearray(raw[: len(raw) - cuts % (len(raw) + 1)])
    for place, value in changes:
        if raw:
            raw[place % len(raw)] = value
    return bytes(raw)


damages = st.tuples(
    st.integers(0, 2**20) | st.just(0), st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=5)
)


def or_refuse(read, *given):
    """What the reader returns, or None if it refuses, in one line."""
    try:
        return read(*given)
    except hb.UserError as error:
        refusal = str(error)
    assert refusal
    assert "\n" not in refusal
    return None


@fuzz
@given(
    room=st.sampled_from(["model", "threat", "data", "method", "weights", "format"]),
    key=st.text(max_size=12),
    value=values,
    data=st.data(),
)
def test_cards(run, room, key, value, data):
    card = read_json(run / "best.json")
    if isinstance(card[room], dict) and data.draw(st.booleans()):
        card[room][data.draw(st.sampled_from(sorted(card[room]))) if data.draw(st.booleans()) else key] = value
    else:
        card[room] = value
    changed = run / "changed.json"
    changed.write_text(json.dumps(card))
    model = or_refuse(hb.load, changed)
    assert model is None or isinstance(model, torch.nn.Module)
    if isinstance(card["threat"], dict):
        threat = or_refuse(threat_from_dict, card["threat"])
        assert threat is None or isinstance(threat, hb.ThreatModel)


@fuzz
@given(
    name=st.sampled_from(["mlp", "small-cnn", "resnet18", "wrn-1000-100", "wrn-28-10"]),
    shape=st.lists(st.integers(), max_size=4),
    classes=st.integers(),
)
def test_a_card_cannot_ask_for_more_memory_than_there_is(name, shape, classes):
    spec = or_refuse(ModelSpec.from_dict, {"name": name, "input_shape": shape, "classes": classes, "mean": [], "std": []})
    if spec is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hauberk.models.build._MAX_PARAMETERS", 2e7)
        net = or_refuse(spec.build)
    assert net is None or sum(parameter.numel() for parameter in net.parameters()) <= 2e7


@pytest.mark.parametrize("name", ["../best.safetensors", "/etc/passwd", "a/b", "", ".."])
def test_a_card_cannot_name_weights_outside_its_folder(run, name):
    card = read_json(run / "best.json") | {"weights": name}
    write_json(run / "outside.json", card)
    with pytest.raises(hb.UserError):
        hb.load(run / "outside.json")


@pytest.mark.parametrize("eps", ["1e99999999", "1E6\t004\t0040", "1e9_9_9_9_9_9_9", "-1e99999999/3", "9" * 100])
def test_an_eps_cannot_keep_the_reader_busy(eps):
    with pytest.raises(hb.UserError, match="not a number"):
        hb.Linf(eps)


@fuzz
@given(damage=damages)
def test_weights(run, damage):
    for name in ("best.json", "best.safetensors"):
        (run / f"changed{name[4:]}").write_bytes((run / name).read_bytes())
    path = run / "changed.safetensors"
    path.write_bytes(mutated(path.read_bytes(), *damage))
    write_json(run / "changed.json", read_json(run / "best.json") | {"weights": path.name, "weights_digest": None})
    or_refuse(hb.load, run / "changed.json")


@fuzz
@given(damage=damages)
def test_plain_state_dicts(run, damage):
    path = run / "plain.pth"
    torch.save(SPEC.build().state_dict(), path)
    path.write_bytes(mutated(path.read_bytes(), *damage))
    or_refuse(lambda: hb.load(path, model=SPEC.build()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weight: weight * float("nan"), "damaged: .* has NaN"),
        (lambda weight: weight.int(), "do not fit this model: .* is torch.int32, not torch.float32"),
    ],
)
def test_weights_that_are_none_are_not_loaded_in_silence(change, says, tmp_path):
    torch.save({name: change(weight) for name, weight in SPEC.build().state_dict().items()}, tmp_path / "net.pth")
    with pytest.raises(hb.UserError, match=says):
        hb.load(tmp_path / "net.pth", model=SPEC.build())


def test_a_state_dict_cannot_unpack_without_bound(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "net.pth", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(hb.UserError, match="is packed"):
        hb.load(tmp_path / "net.pth", model=SPEC.build())


@pytest.mark.parametrize("name", ["sys:exit", "math:sqrt", "json:loads", "helpers:settings", "helpers:Forgetful"])
def test_a_factory_that_makes_no_model_is_one_line(name):
    assert or_refuse(ModelSpec(name, (4,), 3).build) is None


CARD = {"norm": "Linf", "eps": "0.1", "low": 0.0, "high": 1.0, "frozen": None, "monotone": None}


@pytest.mark.parametrize(
    "change", [{"low": [10**400]}, {"high": 10**400}, {"eps": 10**400}, {"monotone": True}, {"frozen": "x"}]
)
def test_a_threat_model_of_senseless_numbers_is_one_line(change):
    assert or_refuse(threat_from_dict, CARD | change) is None


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 5000, "a = " + "{a = " * 5000, "a = " + "9" * 5000, f"label = 'a'\n[features.a]\nlow = -{'9' * 400}"],
    ids=["deep list", "deep table", "long number", "large number"],
)
def test_a_schema_of_endless_depth_or_length_is_one_line(text):
    assert or_refuse(parse_schema, text, "rows.toml") is None


@fuzz
@given(damage=damages, packed=st.booleans())
def test_idx_files(tmp_path_factory, damage, packed):
    raw = b"\0\0\x08\x03" + struct.pack(">3I", 5, 4, 4) + bytes(80)
    path = tmp_path_factory.getbasetemp() / "images"
    path.write_bytes(mutated(gzip.compress(raw) if packed else raw, *damage))
    or_refuse(lambda: [read_idx(content, path) for path, content in read_files([path], None)])


def test_an_idx_file_cannot_unpack_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("hauberk.data.readers._MAX_UNPACKED", 2**20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**22)))
    with pytest.raises(hb.UserError, match="holds more than"):
        next(read_files([tmp_path / "bomb.gz"], None))


@pytest.mark.parametrize("shape", [(0, 2**31, 2**31, 2**31), (), (1,) * 200], ids=["empty", "no dimension", "too many"])
def test_an_idx_header_that_numpy_could_not_follow(shape):
    with pytest.raises(hb.UserError, match="cut short or damaged"):
        read_idx(b"\0\0\x08" + struct.pack(f">B{len(shape)}I", len(shape), *shape) + b"\0", "images")


@fuzz
@given(damage=damages)
def test_cifar_batches(damage):
    batch = {b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 3]}
    or_refuse(read_cifar_batch, mutated(pickle.dumps(batch, protocol=2), *damage), "batch")


def test_a_pickle_that_crashes_numpy_is_refused():
    raw = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}, protocol=2)
    place = raw.index(b"NNN")  # of the state of the dtype: with one field taken from the memo, NumPy's own way ends in a crash
    hostile = raw[: place + 1] + b"q" + raw[place + 2 :]
    program = (
        "import sys; from hauberk.data.readers import read_cifar_batch; read_cifar_batch(sys.stdin.buffer.read(), 'batch')"
    )
    done = subprocess.run([sys.executable, "-c", program], input=hostile, capture_output=True, timeout=100, check=False)
    assert done.returncode in (0, 1), done.stderr  # read, or refused; not killed by a signal


def test_a_pickle_cannot_ask_for_memory_by_its_memo():
    raw = b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."
    with pytest.raises(hb.UserError, match="more memory than it can need"):
        read_cifar_batch(raw, "batch")


def test_checkpoints_cut_at_every_byte_are_refused_and_the_previous_one_is_named(tmp_path):
    path = tmp_path / "state.ckpt"
    for step in (1, 2):
        write_state(path, {"step": step, "weight": torch.arange(3.0)})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        state, warning = read_state(path)
        assert state["step"] == 1
        assert "state.ckpt.previous" in warning
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read_state(path)[0]["step"] == 1


def changed(content, places, value):
    """A nested dictionary with the value of some key replaced; the key is found by following the places."""
    place, *rest = places
    keys = sorted(content, key=str)
    key = keys[place % len(keys)]
    inner = content[key]
    new = changed(inner, rest, value) if rest and isinstance(inner, dict) and inner else value
    return {**content, key: new}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and what it was trained on."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    x, y = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    how = {"epochs": 1, "batch_size": 10, "val_size": 4, "val_steps": 1, "quiet": True, "ema": 0.5, "threads": 1}
    method = hb.method("mma", hb.Linf(0.1), steps=1)
    hb.train(SPEC, (x, y), method=method, out=folder, **how)
    state = read_state(folder / "state.ckpt")[0]

    def again():
        hb.train(SPEC, (x, y), method=method, out=folder, resume=True, **how)

    return folder, state, read_json(folder / "run.json"), again


places = st.lists(st.integers(0, 1000), min_size=1, max_size=4)


@fuzz
@given(places=places, value=values | st.just(torch.zeros(2)))
def test_checkpoints_of_others_with_a_right_checksum(trained, places, value):
    folder, state, _, again = trained
    write_state(folder / "state.ckpt", changed(state, places, value))
    or_refuse(again)


@fuzz
@given(places=places, value=values)
def test_records_of_runs(trained, places, value):
    folder, state, record, again = trained
    write_state(folder / "state.ckpt", state)
    write_json(folder / "run.json", changed(record, places, value))
    try:
        or_refuse(again)
        or_refuse(resume, folder)
    finally:
        write_json(folder / "run.json", record)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of an evaluation, and how to go on with it."""
    folder = tmp_path_factory.mktemp("evaluated") / "evaluation"
    torch.manual_seed(0)
    model, x = SPEC.build(), torch.rand(8, 4)
    y = model(x).argmax(1)

    def again():
        hb.evaluate(model, (x, y), threat=hb.Linf(0.1), attacks=["fgsm"], out=folder, quiet=True, diagnostics="cheap")

    again()
    return folder, read_json(folder / "plan.json"), (folder / "verdicts-0.jsonl").read_bytes(), again


@fuzz
@given(place=st.integers(0, 1000), places=places, value=values, damage=damages)
def test_folders_of_evaluations(evaluated, place, places, value, damage):
    folder, plan, lines, again = evaluated
    try:
        write_json(folder / "plan.json", changed(plan, places, value))
        or_refuse(partial_result, folder)
        write_json(folder / "plan.json", plan)
        records = lines.splitlines()
        record = changed(json.loads(records[place % len(records)]), places, value)
        (folder / "verdicts-0.jsonl").write_bytes(b"\n".join([*records, json.dumps(record).encode(), b""]))
        or_refuse(partial_result, folder)
        or_refuse(again)
        (folder / "verdicts-0.jsonl").write_bytes(mutated(lines, *damage))
        or_refuse(partial_result, folder)
        or_refuse(again)
    finally:
        write_json(folder / "plan.json", plan)
        (folder / "verdicts-0.jsonl").write_bytes(lines)


def test_nothing_is_written_through_a_link_that_lies_in_a_folder_of_others(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("report.html", "report.html.part"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    or_refuse(write_json, tmp_path / "run" / "report.html", {})
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.fixture(scope="module")
def two_evaluations(tmp_path_factory):
    """A folder of two saved evaluations, and what the second holds."""
    folder = tmp_path_factory.mktemp("evaluations")
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    for seed, name in enumerate(("at-0", "mine-0")):
        torch.manual_seed(seed)
        how = {"threat": hb.Linf(0.1), "attacks": ["fgsm"], "quiet": True, "diagnostics": "cheap"}
        hb.evaluate(SPEC.build(), (x, torch.arange(8) % 3), **how).save(folder / f"{name}.json")
    return folder, read_json(folder / "mine-0.json")


@settings(fuzz, max_examples=long_or(12, 1000))  # each draws the pictures of a report
@given(places=places, value=values)
@pytest.mark.filterwarnings("ignore:Glyph")  # of a letter that no font has
def test_evaluations_of_others_side_by_side_and_in_a_report(two_evaluations, places, value):
    folder, found = two_evaluations
    write_json(folder / "mine-0.json", changed(found, places, value))
    or_refuse(lambda: str(hb.compare_results({"at": folder / "at-0.json", "mine": folder / "mine-0.json"})))
    or_refuse(lambda: find_results([str(folder)]))
    or_refuse(make_report, folder / "mine-0.json")


@fuzz
@given(places=places, value=values)
def test_records_beside_evaluations(two_evaluations, trained, places, value):
    folder, found = two_evaluations
    (folder / "run/evaluations/quick").mkdir(parents=True, exist_ok=True)
    write_json(folder / "run/run.json", changed(trained[2], places, value))
    write_json(folder / "run/evaluations/quick/evaluation.json", found)
    or_refuse(lambda: find_results([str(folder)]))
