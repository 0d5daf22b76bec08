"""How long the page takes to open a large scan with its labels and to go through its slices, and in how much memory.

    python benchmarks/gui.py -o OUT

A phantom of both legs, brought to 512 x 512 x 400 voxels (int16, 70 structures), is written to OUT, served by
`tfmuscle gui`, and opened in Chromium without a window and without a GPU (SwiftShader draws with the processor).

Times are the user's: from the click until the picture is drawn and the page says so; `_cpu_s` is what server and
browser worked for it. Frames: the crosshair is moved by keys, each after the picture of the one before is there; with
3D a single one, for that takes seconds without a graphics card. Memory: the peak of the server's process, and the sum
of what Chromium's processes hold for themselves (USS) when all is open.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from tfmuscle.files import write_json
from tfmuscle.io import write_volume
from tfmuscle.phantom import make_phantom
from tfmuscle.volume import Geometry, Volume

SHAPE, STRUCTURES = (512, 512, 400), 70
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # fmt: skip
FRAMES = """async (keys) => {
  const canvas = document.getElementById("canvas");
  const gl = canvas.getContext("webgl2");
  canvas.focus();
  const times = [];
  for (const key of keys) {
    const began = performance.now();
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    await new Promise(requestAnimationFrame);
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));  // waits for the picture
    times.push(performance.now() - began);
  }
  return times;
}"""


def write_scan(folder: Path) -> None:
    """Writes the scan and its labels, unless they are there."""
    if (folder / "labels" / "legs.json").exists():
        return
    made = make_phantom("lower-limb", seed=7)
    at = [np.arange(new) * old // new for new, old in zip(SHAPE, made.labels.array.shape, strict=True)]
    stretch = [old / new for new, old in zip(SHAPE, made.labels.array.shape, strict=True)]
    geometry = Geometry(SHAPE, made.labels.geometry.affine @ np.diag([*stretch, 1.0]))
    noise = np.random.default_rng(1).normal(0, 12, SHAPE).astype(np.float32)
    image = np.clip(made.image.array[np.ix_(*at)] + noise, 0, 30_000).astype(np.int16)
    names = dict(list(made.label_map.to_dict().items())[: STRUCTURES + 1])
    labels = made.labels.array[np.ix_(*at)]
    labels[labels > max(names.values())] = 0
    write_volume(folder / "legs.nii.gz", Volume(image, geometry))
    write_volume(folder / "labels" / "legs.nii.gz", Volume(labels, geometry))
    write_json(folder / "labels" / "legs.json", {"labels": names})


def measure(folder: Path, browser: str) -> dict[str, float]:
    """Opens the scan and its labels, goes through slices; returns the figures."""
    shutil.rmtree(folder / ".tfmuscle", ignore_errors=True)
    words = [sys.executable, "-c", "from tfmuscle.cli import main; main()", "gui", str(folder), "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as tool:
        try:
            address = server.stdout.readline().strip()
            chromium = tool.chromium.launch(executable_path=browser, args=FLAGS)
            page = chromium.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(300_000)
            page.goto(address, wait_until="commit")
            page.wait_for_selector("body[data-ready]")
            found = opened(page, "scan", "scan legs.nii.gz", "is open")
            found |= opened(page, "labels", "labels labels/legs.nii.gz", "70 structures")
            found |= speeds(page)
            found |= opened(page, "labels_again", "labels labels/legs.nii.gz", "70 structures")
            found["server_peak_gb"] = status(server.pid, "VmHWM")
            found["browser_gb"] = sum(uss(pid) for pid in children(os.getpid()) if is_browser(pid))
            page.screenshot(path=folder / "page.png")
            chromium.close()
        finally:
            server.terminate()
    return found


def opened(page: Page, what: str, key: str, says: str) -> dict[str, float]:
    """Clicks an entry of the list; returns the seconds until the picture is there."""
    page.evaluate("() => { document.getElementById('message').textContent = ''; }")
    began, worked = time.perf_counter(), cpu()
    page.click(f'[data-key="{key}"]')
    page.wait_for_function("text => document.getElementById('message').textContent.includes(text)", arg=says)
    page.evaluate(FRAMES, ["ArrowUp"])
    return {f"{what}_s": time.perf_counter() - began, f"{what}_cpu_s": cpu() - worked}


def speeds(page: Page) -> dict[str, float]:
    """Returns milliseconds a slice, in three planes and in one, and with 3D."""
    found = {}
    for layout, count in (("planes", 60), ("axial", 60), ("all", 1)):
        page.select_option("#layout", layout)
        times = (
            page.evaluate(FRAMES, ["ArrowUp"] * (count + 3))[3:] if count > 1 else page.evaluate(FRAMES, ["ArrowUp"])
        )
        found[f"{layout}_ms"] = float(np.median(times))
        found[f"{layout}_slow_ms"] = float(np.percentile(times, 95))
    page.select_option("#layout", "planes")
    page.evaluate(FRAMES, ["ArrowUp"])
    return found


def cpu() -> float:
    """Returns the processor seconds of the processes below this one."""
    total = 0
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Returns the processes below a process."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in table.splitlines()]
    found = [pid]
    for one in found:
        found += [child for child, parent in parents if parent == one]
    return found[1:]


def is_browser(pid: int) -> bool:
    try:
        return b"chrom" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False


def uss(pid: int) -> float:
    """Returns what a process holds for itself, in GB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty): +(\d+)", text, re.M)) * 1024 / 1e9


def status(pid: int, field: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text)[1]) * 1024 / 1e9


def main() -> None:
    """Writes the scan, measures, prints and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the scan and the figures")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="Chromium")
    parser.add_argument("-n", "--times", type=int, default=3, help="how often")
    given = parser.parse_args()
    write_scan(given.output)
    runs = []
    for _ in range(given.times):
        load = os.getloadavg()[0]
        runs.append({"load": load} | measure(given.output, given.browser))
        print(json.dumps({key: round(value, 3) for key, value in runs[-1].items()}), flush=True)
    write_json(given.output / "figures.json", {"machine": platform.platform(), "cores": os.cpu_count(), "runs": runs})


if __name__ == "__main__":
    main()
