"""Makes the pictures of README and docs, in docs/images.

    python docs/make_pictures.py

makes bounds.png (two minutes), report.png (needs Chromium and playwright) and those of docs/gallery.md, by the commands
that stand there (half an hour); with "bounds", "report" or "gallery" behind it, only these.
"""

import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

import hauberk as hb
from hauberk.cli import main
from hauberk.core.figures import COLOURS, INK, figure_file, new_figure

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
VIEWS = {"wide": (1280, 1500, "light"), "phone": (420, 1500, "dark")}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
TRAIN = "train --data digits --method mail-trades --epochs 20 --threads 1 --quiet --out"


def bounds() -> None:
    """Robust accuracy of a network on 100 test images of digits against ε: at most by attacks, at least by proof."""
    train_set, test_set = (hb.data.load_data("digits", split) for split in ("train", "test"))
    threat, n = hb.Linf(0.1), 100
    model = hb.train("small-cnn", train_set, method="trades", threat=threat, epochs=8, quiet=True).model
    curve = hb.robustness_curve(model, test_set, threat=threat, n=n, quiet=True)
    grid = [eps for eps in curve.eps if eps <= 0.15]
    proved = [hb.certify(model, test_set, threat=hb.Linf(eps), n=n, quiet=True).certified_accuracy for eps in grid]
    x, most = [0.0, *grid], [100 * curve.robust_accuracy(eps) for eps in (0.0, *grid)]
    least = [most[0], *(100 * share for share in proved)]

    picture, (axes,) = new_figure(width=6.4, height=3.2)
    axes.plot(x, most, color=COLOURS[1], marker="o", markersize=4, label="at most: attacks leave so many")
    axes.plot(x, least, color=COLOURS[0], marker="s", markersize=4, linestyle="--", label="at least: proved")
    axes.fill_between(x, least, most, color=INK, alpha=0.08, linewidth=0, label="nobody knows")
    axes.set(xlabel="ε: how far every pixel may change (of 1)", ylabel="robust accuracy, %", ylim=(0, 102), xlim=(0, grid[-1]))
    axes.legend(frameon=False, loc="lower left")
    axes.set_title(f"digits, small-cnn trained by TRADES, L∞, n = {n}", fontsize=9, color=INK)
    (IMAGES / "bounds.png").write_bytes(figure_file(picture, "png"))


def report() -> None:
    """The top of a run's report, on a wide screen and on a phone."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        main([*TRAIN.split(), str(run)])
        main(["evaluate", str(run), "--suite", "papers", "--certify", "--threads", "1", "--quiet"])
        main(["report", str(run)])
        beside(shoot(run / "report.html", Path(name)), IMAGES / "report.png")


def gallery() -> None:
    """Run the commands of docs/gallery.md in an empty folder, and take the picture of each from what they wrote."""
    page, here = (DOCS / "gallery.md").read_text(), Path.cwd()
    commands, pictures = re.findall(r"(?m)^    hauberk (.+)$", page), re.findall(r"images/(gallery/[^)]+)", page)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for command in commands:
            if code := main([*shlex.split(command), "--threads", "1", "--quiet"]):
                sys.exit(f"make_pictures.py: hauberk {command} ended with {code}")
        for picture in pictures:
            (found,) = Path("runs").rglob(Path(picture).name)
            (IMAGES / picture).parent.mkdir(exist_ok=True)
            shutil.copyfile(found, IMAGES / picture)
        os.chdir(here)


def shoot(page_file: Path, folder: Path) -> list[Path]:
    """Photograph the top of a page in each view."""
    from playwright.sync_api import sync_playwright

    browser_path = next(path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name)))
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        for name, (width, height, scheme) in VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            page.screenshot(path=folder / f"{name}.png")
            found.append(folder / f"{name}.png")
        browser.close()
    return found


def beside(paths: list[Path], out: Path) -> None:
    """Put pictures of the same height side by side, at half size."""
    images = [Image.open(path).convert("RGB") for path in paths]
    whole = Image.new("RGB", (sum(image.width for image in images) + 20, images[0].height), "white")
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + 20
    small = whole.resize((whole.width * 5 // 8, whole.height * 5 // 8), Image.Resampling.LANCZOS)
    small.quantize(64).save(out, optimize=True)


if __name__ == "__main__":
    for make in (bounds, report, gallery):
        if sys.argv[1:] in ([], [make.__name__]):
            make()
