"""Nothing is sent anywhere, and nothing of the machine is remembered that a result does not need."""

import re
import socket

from hauberk.cli import main
from helpers import ROOT

SOURCE = ROOT / "src" / "hauberk"
CONNECTING = re.compile(
    r"^\s*(?:import|from) (?:socket|ssl|http|urllib|requests|httpx|aiohttp|huggingface_hub|ftplib|smtplib)\b", re.M
)


def test_no_code_of_ours_opens_a_connection():
    assert [path.name for path in SOURCE.rglob("*.py") if CONNECTING.search(path.read_text())] == []
    named = {path.name for path in SOURCE.rglob("*.py") if "download=True" in path.read_text()}
    assert named == {"named.py"}, "downloads happen in one place, when asked"


def test_training_evaluating_and_reporting_need_no_network_and_keep_no_secret(tmp_path, monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("something asked for the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SECRET_TOKEN", "tell-nobody-7f3a")
    monkeypatch.chdir(tmp_path)
    train = ["train", "--method", "mart", "--epochs", "1", "--batch-size", "512", "--quiet", "--out", "run"]
    assert main(train) == 0
    assert main(["evaluate", "run", "--attacks", "pgd-10", "--n", "20", "--diagnostics", "cheap", "--quiet"]) == 0
    assert list(home.rglob("*")) == [], "something was written into the user's home"
    assert {path.name for path in tmp_path.iterdir()} == {"home", "run"}
    assert main(["report", "run"]) == 0
    host = socket.gethostname()
    private = [word.encode() for word in ("tell-nobody-7f3a", str(tmp_path), host) if len(word) > 5]  # "vm" is in many words
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    assert len(kept) > 8
    for path in kept:
        assert [word for word in private if word in path.read_bytes()] == [], path
