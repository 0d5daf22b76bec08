"""Takes the pictures of docs/gui.md in Chromium: `python docs/gui_picture.py`.

What they show is a phantom; nothing in them is a patient.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tfmuscle.files import write_json
from tfmuscle.io import write_volume
from tfmuscle.phantom import make_phantom

HERE = Path(__file__).parent
RENAME = """() => {
  for (const id of ["folder", "log"]) {
    const place = document.getElementById(id);
    place.textContent = place.textContent.replace(/[^ \\n]*\\/study/g, "/data/study");
  }
}"""
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def main() -> None:
    """Serves a folder with one phantom and takes the pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        made = make_phantom("lower-limb", seed=7, spacing=(3, 3, 5))
        write_volume(folder / "legs.nii.gz", made.image)
        write_volume(folder / "labels" / "legs.nii.gz", made.labels)
        write_json(folder / "labels" / "legs.json", {"labels": made.label_map.to_dict()})
        words = [sys.executable, "-c", "from tfmuscle.cli import main; main()", "gui", str(folder), "--no-browser"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as tool:
            try:
                browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                page.set_default_timeout(300_000)
                page.goto(server.stdout.readline().strip(), wait_until="commit")
                take(page)
                browser.close()
                for name in ("gui.png", "gui_surfaces.png"):
                    shrink(HERE / name)
            finally:
                server.terminate()


def take(page: Page) -> None:
    """Opens scan and labels, corrects, and shows the surfaces of two bones."""
    page.click('[data-key="scan legs.nii.gz"]')
    says(page, "is open")
    page.click('[data-key="labels labels/legs.nii.gz"]')
    says(page, "80 structures")
    page.evaluate(RENAME)
    page.focus("#canvas")
    for key in ("4", *["PageUp"] * 3, *["ArrowLeft"] * 12):
        page.keyboard.press(key)
    page.screenshot(path=HERE / "gui.png")

    page.click("details:has(form[data-command=surfaces]) > summary")
    page.click("[data-command=surfaces] button")
    says(page, "Done: surfaces")
    for name in ("femur_left", "tibia_left", "hip_left"):
        page.click(f'[data-key="surface results/surfaces/legs/{name}.ply"]')
        says(page, "triangles")
    page.select_option("#layout", "3d")
    page.keyboard.press("1")
    page.evaluate(RENAME)
    page.focus("#canvas")
    page.keyboard.press("s")
    page.screenshot(path=HERE / "gui_surfaces.png")


def shrink(path: Path) -> None:
    """Keeps 128 colours of a picture, which is a third of its size."""
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128).save(path, optimize=True)


def says(page: Page, text: str) -> None:
    page.wait_for_function("text => document.getElementById('message').textContent.includes(text)", arg=text)


if __name__ == "__main__":
    main()
