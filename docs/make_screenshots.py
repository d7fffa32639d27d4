"""Makes docs/images/report.png: the report of a short run on digits, on a wide screen and on a phone.

    python docs/make_screenshots.py

Needs Chromium, playwright and pillow (which matplotlib brings).
"""

import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from hauberk.cli import main

HERE = Path(__file__).parent
VIEWS = {"wide": (1280, 1500, "light"), "phone": (420, 1500, "dark")}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def shoot(page_file: Path, folder: Path) -> list[Path]:
    """Photograph the top of a page in each view."""
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
    out.parent.mkdir(exist_ok=True)
    small.quantize(64).save(out, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        main(
            [
                "train",
                "--data",
                "digits",
                "--method",
                "mail-trades",
                "--epochs",
                "20",
                "--threads",
                "1",
                "--quiet",
                "--out",
                str(run),
            ]
        )
        main(["evaluate", str(run), "--suite", "papers", "--threads", "1", "--quiet"])
        main(["report", str(run)])
        beside(shoot(run / "report.html", Path(name)), HERE / "images" / "report.png")
