"""The whole way through the page in a real browser: Chromium without a window, its WebGL in software.

Skipped where Playwright or Chromium is missing; on Debian: `apt-get install chromium`, `pip install playwright`.
"""

import shutil
import zlib

import highdicom
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from dicom_files import write_slice
from gui_pages import TOKEN, page_of

from tfmuscle.cli import tfmuscle_group
from tfmuscle.io import read_volume, write_volume
from tfmuscle.phantom import make_phantom

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
FLAGS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with one phantom, and a DICOM series of it."""
    folder = tmp_path_factory.mktemp("workspace")
    write_volume(folder / "leg.nii.gz", make_phantom("bones", seed=1_100_033).image)
    volume = read_volume(folder / "leg.nii.gz").reoriented("LPS")
    (folder / "dicom").mkdir()
    for number in range(volume.array.shape[2]):
        place = volume.geometry.world([0, 0, number]) * (-1, -1, 1)
        pixels = np.clip(volume.array[..., number].T, 0, 30_000).astype(np.int16)
        tags = {"PixelSpacing": [volume.spacing[1], volume.spacing[0]], "SliceThickness": volume.spacing[2]}
        write_slice(folder / "dicom" / f"{number:03d}.dcm", pixels, position=place, InstanceNumber=number + 1, **tags)
    return folder


@pytest.fixture
def tab(workspace):
    """A tab on a served folder; fails when the page asks a foreign host or throws."""
    wrong = []
    with page_of(workspace) as server, playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.set_default_timeout(PATIENCE_MS)
        tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: None if own(request.url, server) else wrong.append(f"asks {request.url}"))
        tab.server = server
        tab.goto(f"{server.home}/?token={TOKEN}", wait_until="commit")
        tab.wait_for_selector("body[data-ready]")
        yield tab
        browser.close()
    assert not wrong


def own(url, server):
    return url.startswith((f"{server.home}/", "data:", "blob:"))


def says(tab, text):
    tab.wait_for_function("text => document.getElementById('message').textContent.includes(text)", arg=text)


def test_choose_run_correct_save_download(tab, workspace, tiny_run):
    shutil.copytree(tiny_run, workspace / "run")
    tab.click("#reload")
    assert tab.url == f"{tab.server.home}/"  # no token in the address
    tab.click('[data-key="scan leg.nii.gz"]')
    says(tab, "leg is open")
    tab.click("summary:has-text('Run a model')")
    tab.select_option("[data-command=predict] [name=model]", "run")
    tab.click("[data-command=predict] button")
    tab.wait_for_selector("body[data-labels='results/predictions/leg-run/leg.nii.gz']")
    predicted = workspace / "results" / "predictions" / "leg-run" / "leg.nii.gz"
    says(tab, "structures")

    # the same labels as the command on a terminal
    words = [
        "predict",
        "-m",
        str(workspace / "run"),
        "-i",
        str(workspace / "leg.nii.gz"),
        "-o",
        str(workspace.parent / "out"),
    ]
    assert CliRunner().invoke(tfmuscle_group, words).exit_code == 0
    expected = np.asarray(nib.load(workspace.parent / "out" / "leg.nii.gz").dataobj)
    assert np.array_equal(np.asarray(nib.load(predicted).dataobj), expected)

    # one dab of the second structure at the crosshair, with the keyboard alone
    ids = [one["id"] for one in table(tab, predicted, workspace)]
    tab.focus("#canvas")
    for key in ("4", ".", "-", "-", "PageUp", "ArrowLeft", "Space"):
        tab.keyboard.press(key)
    assert tab.input_value("#brush-size") == "1" and tab.is_checked("[name=tool][value=brush]")
    at_mm = [float(text) for text in tab.inner_text("#place").split(" mm")[0].split(", ")]
    tab.keyboard.press("Control+s")
    says(tab, "voxels changed")
    saved = workspace / "results" / "labels" / "leg_corrected.nii.gz"
    array = np.asarray(nib.load(saved).dataobj)
    grid = read_volume(workspace / "leg.nii.gz").geometry
    changed = np.argwhere(array != expected)
    assert len(changed) <= 1 and array[tuple(np.rint(grid.index(at_mm)).astype(int))] == ids[1]
    assert read_volume(saved).geometry.same_grid(grid)

    # a stroke of the mouse in one slice, and one that is taken back
    tab.select_option("#layout", "axial")
    box = tab.locator("#canvas").bounding_box()
    for height in (0.45, 0.55):
        tab.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + height * box["height"])
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + height * box["height"], steps=4)
        tab.mouse.up()
    tab.click("#undo")
    tab.evaluate("document.getElementById('message').textContent = ''")
    tab.click("#save")
    says(tab, "voxels changed")
    stroke = np.argwhere(np.asarray(nib.load(saved).dataobj) != array)
    upwards = grid.orientation.index("S" if "S" in grid.orientation else "I")
    assert len(stroke) >= 3 and np.unique(stroke[:, upwards]).size == 1
    spread = sorted(np.ptp(grid.world(stroke), axis=0))
    assert spread[1] < 1e-3 + max(grid.spacing)  # one line, not two

    # what is downloaded is the saved file
    tab.click("summary:has-text('Measure, export')")
    with tab.expect_download() as download:
        tab.click("#get-labels")
    assert zlib.crc32(download.value.path().read_bytes()) == zlib.crc32(saved.read_bytes())


def table(tab, path, workspace):
    name = path.relative_to(workspace).as_posix()
    return tab.server.get("/api/labels", path=name, scan="leg.nii.gz")["structures"]


def test_a_dicom_series_from_prepare_to_segmentation(tab, workspace):
    tab.click('[data-key="dicom dicom"]')
    tab.click("#dicom ul button")
    says(tab, "is open")
    tab.click("summary:has-text('Prepare')")
    tab.select_option("[data-command=prepare] [name=part]", "lower")
    tab.click("[data-command=prepare] button:has-text('Prepare')")
    says(tab, "Done: prepare")
    (prepared,) = (workspace / "results" / "prepared").glob("*/*.nii.gz")
    whole = read_volume(workspace / "dicom")
    assert read_volume(prepared).geometry.shape[2] < whole.geometry.shape[2]

    tab.fill("#structure-name", "femur left")
    tab.keyboard.press("Enter")
    tab.focus("#canvas")
    for key in ("4", "=", "=", "Space", *["ArrowUp"] * 3, "Space"):
        tab.keyboard.press(key)
    tab.keyboard.press("Control+s")
    says(tab, "voxels changed")
    (drawn,) = (workspace / "results" / "labels").glob("*_drawn.nii.gz")
    slices = np.flatnonzero(np.asarray(nib.load(drawn).dataobj).any(axis=(0, 1)))
    assert len(slices) == 2 and slices[1] - slices[0] == 3

    tab.click("summary:has-text('Propagate')")
    tab.select_option("[data-command=propagate] [name=method]", "interpolate")
    tab.click("[data-command=propagate] button")
    says(tab, "_propagated.nii.gz: 1 structures")
    (filled,) = (workspace / "results" / "labels").glob("*_propagated.nii.gz")
    assert len(np.flatnonzero(np.asarray(nib.load(filled).dataobj).any(axis=(0, 1)))) == 4

    tab.click("summary:has-text('Measure, export')")
    tab.click("[data-command=write-seg] button")
    says(tab, "Done: DICOM SEG")
    (seg,) = (workspace / "results" / "seg").glob("*.dcm")
    found = highdicom.seg.segread(seg)
    assert found.get_segment_description(1).SegmentLabel == "femur_left"
    voxels = found.get_volume(combine_segments=True).array.sum()
    assert voxels == (np.asarray(nib.load(filled).dataobj) > 0).sum()
