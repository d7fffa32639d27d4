"""What is shipped: wheel and sdist build, and the demo runs from the wheel, in a folder where there is no checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from helpers import ROOT

pytest.importorskip("build")
pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(shipped):
    names = zipfile.ZipFile(next(shipped.glob("*.whl"))).namelist()
    assert {"hauberk/__init__.py", "hauberk/py.typed", "hauberk/report/page.html.j2"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hauberk"}


def test_the_sdist_holds_what_is_needed_to_test_it(shipped):
    with tarfile.open(next(shipped.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "start.py", "tests/system/test_wheel.py", "docs/conf.py"} <= names
    assert not any(name.startswith(("runs", "build", ".venv")) for name in names)


def test_the_demo_runs_from_the_wheel(shipped, tmp_path):
    home = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(home)]
    subprocess.run([*install, str(next(shipped.glob("*.whl")))], check=True, timeout=200)
    environment = {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}

    def run(*words):
        command = [sys.executable, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)

    assert str(home) in run("-c", "import hauberk; print(hauberk.__file__)").stdout
    demo = run("-m", "hauberk", "demo", "--epochs", "2", "--quiet")
    assert demo.returncode == 0, demo.stderr
    assert "worst case" in demo.stdout
    report = run("-m", "hauberk", "report", str(next((tmp_path / "runs").rglob("run.json")).parent))
    assert report.returncode == 0, report.stderr
