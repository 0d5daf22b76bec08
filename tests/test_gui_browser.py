"""The whole way through the page in a real browser: Chromium without a window, its WebGL in software.

Skipped where Playwright or Chromium is missing; on Debian: `apt-get install chromium`, `pip install playwright`.
"""

import shutil

import highdicom
import nibabel as nib
import numpy as np
import pytest
from browser_tools import downloaded, drag, ids, picture, place, press, says, submit
from dicom_files import write_slice
from gui_pages import page_of
from known_networks import linear_network, make_spec

from tfmuscle.config import TrainConfig
from tfmuscle.inference.runs import DONE_FILE, WEIGHTS_FILE
from tfmuscle.io import read_label_image, read_mesh, read_volume, write_mesh, write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.phantom import make_phantom
from tfmuscle.subjects import read_dataset
from tfmuscle.volume import Mesh
from tfmuscle.workflows.measuring import MeasureOptions, measure
from tfmuscle.workflows.predicting import predict
from tfmuscle.workflows.preparing import PrepareOptions, prepare
from tfmuscle.workflows.propagating import Propagating, propagate
from tfmuscle.workflows.slice_labels import SliceLabels
from tfmuscle.workflows.surfaces import surfaces

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
PATIENCE_MS = 60_000
SCREEN = {"width": 1280, "height": 800}
SHADERS = """(use) => {
  const { nv } = window.tfmuscle.view;
  if (use) [window.kept, nv.ownTexture] = [nv.ownTexture, null];
  else nv.ownTexture = window.kept;
  nv.updateGLVolume();
}"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a DICOM series of a phantom, and a network that names voxels by their brightness."""
    folder = tmp_path_factory.mktemp("workspace")
    volume = make_phantom("lower-limb", seed=3, spacing=(8, 8, 20)).image.reoriented("LPS")
    (folder / "dicom").mkdir()
    for number in range(volume.array.shape[2]):
        place = volume.geometry.world([0, 0, number]) * (-1, -1, 1)
        pixels = np.clip(volume.array[..., number].T, 0, 30_000).astype(np.int16)
        tags = {"PixelSpacing": [volume.spacing[1], volume.spacing[0]], "SliceThickness": volume.spacing[2]}
        write_slice(folder / "dicom" / f"{number:03d}.dcm", pixels, position=place, InstanceNumber=number + 1, **tags)
    spec = make_spec("slices", size=(64, 64), label_map=LabelMap({4: "muscle", 9: "bone"}))
    (folder / "run").mkdir()
    linear_network(spec, [0, 0.08, 0.16], [0, -8, -32]).save(folder / "run" / WEIGHTS_FILE)
    spec.save(folder / "run" / "spec.json")
    TrainConfig().save(folder / "run" / "train.json")
    (folder / "run" / DONE_FILE).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens pages as one visitor; fails when one asks a foreign host, throws, or logs an error."""
    wrong = []
    visitor = chromium.new_context(viewport=SCREEN, accept_downloads=True)
    visitor.set_default_timeout(PATIENCE_MS)

    def open_page(server, expect_errors=False):
        tab = visitor.new_page()
        own = (f"{server.home}/", "data:", "blob:")
        tab.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
        if not expect_errors:
            tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
            tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.goto(f"{server.home}/?token={server.token}", wait_until="commit")
        tab.wait_for_selector("body[data-ready]")
        assert tab.url == f"{server.home}/"  # no token in the address
        return tab

    yield open_page
    visitor.close()
    assert not wrong


def test_the_whole_way(visit, workspace, tmp_path):
    with page_of(workspace) as server:
        tab = visit(server)
        results = workspace / "results"
        tab.click('[data-key="dicom dicom"]')
        tab.click("#dicom ul button")
        says(tab, "is open")
        whole = read_volume(workspace / "dicom")
        prepared = prepare_below_the_hip(tab, results, whole, tmp_path)
        predicted = run_the_model(tab, workspace, results, prepared, tmp_path)
        corrected = correct_with_the_mouse(tab, results, predicted, read_volume(prepared).geometry)
        propagated = propagate_two_slices(tab, results, prepared, corrected, tmp_path)
        hand_on_and_download(tab, results, prepared, propagated, tmp_path)
        see_a_surface(tab, results, workspace)
        write_a_dicom_seg(tab, results, whole)


def prepare_below_the_hip(tab, results, whole, out):
    """The proposed hip is shown, moved by its slider and by a drag in the picture, and cut there."""
    tab.click("details:has(form[data-command=prepare]) > summary")
    tab.check("#below-hip")
    tab.wait_for_function("() => document.getElementById('hip-reason').textContent.startsWith('Proposed')")
    proposed = int(tab.input_value("#hip-slice"))
    tab.focus("#hip-range")
    press(tab, "ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert int(tab.input_value("#hip-slice")) == proposed - 3
    assert place(tab)[2] == pytest.approx(
        whole.geometry.world([0, 0, proposed - 3])[2], abs=0.06
    )  # the picture follows
    tab.select_option("#layout", "coronal")
    drag(tab, (0.5, 0.2), (0.5, 0.4))
    dragged = int(tab.input_value("#hip-slice"))
    assert dragged < proposed - 3
    assert abs(place(tab)[2] - whole.geometry.world([0, 0, dragged])[2]) <= whole.spacing[2] / 2 + 0.06
    tab.select_option("#layout", "planes")  # 3D takes the processor's time
    submit(tab, "prepare", margin="0")
    prepare(converted(whole, out), out / "prepared", PrepareOptions(below_hip=True, hip_slice=dragged, margin=0))
    says(tab, "Done: prepare")
    (made,) = (results / "prepared").glob("*/*.nii.gz")
    (expected,) = (out / "prepared").glob("*.nii.gz")
    assert np.array_equal(ids(made), ids(expected)) and ids(made).shape[2] < whole.geometry.shape[2]
    assert read_volume(made).geometry.same_grid(read_volume(expected).geometry)
    return made


def converted(volume, out):
    write_volume(out / "series.nii.gz", volume)
    return out / "series.nii.gz"


def run_the_model(tab, workspace, results, prepared, out):
    tab.click(f'[data-key="scan {prepared.relative_to(workspace)}"]')
    says(tab, "is open")
    submit(tab, "predict", model="run")
    predict(workspace / "run", prepared, out / "predicted.nii.gz")
    says(tab, "2 structures")
    (made,) = (results / "predictions").glob("*/*.nii.gz")
    expected = ids(out / "predicted.nii.gz")
    assert np.array_equal(ids(made), expected) and {0, 4, 9} == set(np.unique(expected))
    return made


def correct_with_the_mouse(tab, results, predicted, grid):
    """A stroke, one that is taken back, and a dab of the eraser by keyboard; seen at 1280 x 800."""
    tab.select_option("#layout", "axial")
    tab.focus("#canvas")
    before = place(tab)[2]
    tab.locator("#canvas").hover()
    tab.mouse.wheel(0, 100)  # one slice
    assert abs(place(tab)[2] - before) == pytest.approx(grid.spacing[2], abs=0.11)
    press(tab, "4", ".", "-", "-")  # the brush, the second structure, one voxel wide
    assert tab.input_value("#brush-size") == "1" and tab.is_checked("[name=tool][value=brush]")
    drag(tab, (0.3, 0.45), (0.7, 0.45))
    drag(tab, (0.3, 0.55), (0.7, 0.55))
    tab.click("#undo")
    tab.click("#save")
    says(tab, "voxels changed")
    saved = results / "labels" / f"{predicted.name.removesuffix('.nii.gz')}_corrected.nii.gz"
    before, after = ids(predicted), ids(saved)
    stroke = np.argwhere(after != before)
    upwards = grid.orientation.index("S" if "S" in grid.orientation else "I")
    assert len(stroke) >= 3 and np.unique(stroke[:, upwards]).size == 1 and set(after[tuple(stroke.T)]) == {9}
    assert sorted(np.ptp(grid.world(stroke), axis=0))[1] < 1e-3 + max(grid.spacing[:2])  # one line, not two
    assert read_label_image(saved).geometry.same_grid(grid)

    tab.focus("#canvas")
    press(tab, "5", "Space", "Control+s")
    says(tab, ", 1 voxels changed")
    (erased,) = np.argwhere(ids(saved) != after)
    assert np.array_equal(erased, np.rint(grid.index(place(tab)))) and ids(saved)[tuple(erased)] == 0
    tab.select_option("#layout", "planes")
    return saved


def propagate_two_slices(tab, results, prepared, corrected, out):
    submit(tab, "propagate", method="interpolate", slices="8, 14")
    source = SliceLabels(prepared, corrected, listed=(8, 14))
    propagate(source, out / "propagated.nii.gz", Propagating(method="interpolate"))
    says(tab, "_propagated.nii.gz: 2 structures")
    (made,) = (results / "labels").glob("*_propagated.nii.gz")
    expected = ids(out / "propagated.nii.gz")
    assert np.array_equal(ids(made), expected) and expected[..., 11].any() and not expected[..., 15:].any()
    return made


def hand_on_and_download(tab, results, prepared, labels, out):
    """Jobs in a row, one cancelled; then what is downloaded is what the library makes of the same files."""
    submit(tab, "add-case", partly=True, set="mine", case="leg_1")
    submit(tab, "measure")
    submit(tab, "surfaces")
    submit(tab, "measure")
    rows = tab.locator(".job", has_text="measure")
    rows.nth(1).wait_for()
    rows.first.get_by_text("Cancel").click()
    measure(labels, out / "report", MeasureOptions(scan=prepared))
    surfaces(labels, out / "surfaces")
    says(tab, "Done: surfaces")
    assert [rows.nth(number).locator(".state").inner_text() for number in (0, 1)] == ["cancelled", "done"]
    (case,) = read_dataset(results / "datasets" / "mine").subjects
    assert case.subject_id == "leg_1"
    image, known = case.read(read_dataset(results / "datasets" / "mine").label_map)
    assert np.array_equal(image.array[..., 0], ids(prepared)) and image.geometry.same_grid(known.geometry)
    drawn = ids(labels).any(axis=(0, 1))
    assert (known.array[..., ~drawn] == 255).all() and np.array_equal(known.array[..., drawn], ids(labels)[..., drawn])

    assert downloaded(tab, "#get-labels") == labels.read_bytes()
    name = labels.name.removesuffix(".nii.gz")
    folder = f"results/surfaces/{name}"
    made = downloaded(tab, f'li:has([data-key="surface {folder}/bone.ply"]) a')
    assert made == (out / "surfaces" / "bone.ply").read_bytes()
    table = downloaded(tab, f'a[href$="{name}%2Fstructures.csv"]')
    assert table == (out / "report" / "structures.csv").read_bytes() and table.count(b"\n") == 3

    tab.select_option("[data-command=prepare] [name=dataset]", "results/datasets/mine")
    tab.click("#inspect")
    says(tab, "Done: inspect mine")
    assert "bone" in tab.inner_text("#log")


def see_a_surface(tab, results, workspace):
    """A surface lies in the 3D view where its labels lie, whichever space its file is in."""
    (path,) = (results / "surfaces").glob("*/bone.ply")
    mesh = read_mesh(path)
    write_mesh(results / "lps.ply", mesh, space="lps")
    write_mesh(results / "far.ply", Mesh(mesh.vertices * 1000, mesh.faces))
    tab.click("#reload")
    tab.set_viewport_size({"width": 960, "height": 560})
    tab.select_option("#layout", "3d")
    tab.check("#only-labels")
    tab.focus("#canvas")
    press(tab, "x")  # no crosshair
    tab.get_by_label("show muscle").uncheck()
    labels = picture(tab)
    tab.get_by_label("show bone").uncheck()
    nothing = picture(tab)
    for name in (path.relative_to(workspace), "results/lps.ply"):
        tab.click(f'[data-key="surface {name}"]')
        says(tab, f"{len(mesh.faces):,} triangles")
        shown = picture(tab)
        assert shares_place(shown, labels, nothing)
        tab.click(f'[data-key="surface {name}"]')
    tab.click('[data-key="surface results/far.ply"]')
    says(tab, "outside the scan")
    tab.click('[data-key="surface results/far.ply"]')
    tab.uncheck("#only-labels")
    tab.set_viewport_size(SCREEN)
    tab.select_option("#layout", "planes")


def shares_place(one, other, nothing):
    """Whether what two pictures show before the same ground covers the same pixels, but for a rim."""
    masks = [np.abs(shown - nothing).max(axis=-1) > 24 for shown in (one, other)]
    assert all(mask.sum() > 200 for mask in masks)
    return 2 * (masks[0] & masks[1]).sum() / sum(mask.sum() for mask in masks) > 0.85


def write_a_dicom_seg(tab, results, whole):
    """New labels by keyboard alone on the series, and the DICOM SEG of them."""
    tab.click('[data-key="dicom dicom"]')
    tab.click("#dicom ul button")
    says(tab, "is open")
    tab.focus("#structure-name")
    tab.keyboard.type("femur left")
    press(tab, "Enter")
    tab.focus("#canvas")
    press(tab, "4", "=", "=", "Space", "ArrowUp", "ArrowUp", "Space", "Control+s")
    says(tab, "voxels changed")
    (drawn,) = (results / "labels").glob("*_drawn.nii.gz")
    slices = np.flatnonzero(ids(drawn).any(axis=(0, 1)))
    assert len(slices) == 2 and slices[1] - slices[0] == 2
    assert read_label_image(drawn).geometry.same_grid(whole.geometry)
    submit(tab, "write-seg")
    row = tab.locator(".job", has_text="DICOM SEG")
    row.wait_for()
    tab.reload()  # in the middle of the job
    row.locator(".state.done").wait_for()
    row.get_by_role("button").first.click()
    tab.wait_for_function("() => document.getElementById('log').textContent.includes('.dcm')")
    assert tab.locator(".job").count() == 9  # those before, too
    (seg,) = (results / "seg").glob("*.dcm")
    assert downloaded(tab, f'a[href$="{seg.name}"]') == seg.read_bytes()
    found = highdicom.seg.segread(seg)
    assert found.get_segment_description(1).SegmentLabel == "femur_left"
    assert found.get_volume(combine_segments=True).array.sum() == (ids(drawn) > 0).sum()


def test_a_processor_gives_the_colours_that_a_graphics_card_gives(visit, tmp_path):
    """Of flipped and turned scans, by NiiVue's shaders and by the page's own table."""
    array = make_phantom("thigh", seed=3, spacing=(8, 8, 24)).image.array
    turned = np.array([[0, 0, -8.0, 40], [-8, 0, 0, 9], [0, 24, 0, -60], [0, 0, 0, 1]])
    kinds = (np.int16, np.uint8, np.float32)
    for kind in kinds:
        scaled = (array * 255 / array.max() - 20 * (kind != np.uint8)).astype(kind)
        nib.save(nib.Nifti1Image(scaled, turned), tmp_path / f"{kind.__name__}.nii.gz")
    with page_of(tmp_path) as server:
        tab = visit(server)
        for kind in kinds:
            tab.click(f'[data-key="scan {kind.__name__}.nii.gz"]')
            says(tab, f"{kind.__name__} is open")
            own = picture(tab)
            tab.evaluate(SHADERS, True)
            difference = np.abs(own - picture(tab))
            assert difference.max() <= 8 and (difference > 2).mean() < 1e-3 and own.max() > 200  # rays add up rounding
            tab.evaluate(SHADERS, False)


def test_pages_of_one_folder_lose_nothing(visit, workspace, tmp_path):
    """Upload, reload, two pages at once, and a page left open while the server starts anew with another token."""
    folder = tmp_path / "folder"
    folder.mkdir()
    volume = make_phantom("thigh", seed=3, spacing=(8, 8, 24)).image
    write_volume(tmp_path / "leg.nii.gz", volume)
    with page_of(folder) as server:
        one = visit(server, expect_errors=True)
        one.set_input_files("#upload", tmp_path / "leg.nii.gz")
        says(one, "results/uploads/leg.nii.gz is in the folder")
        assert (folder / "results/uploads/leg.nii.gz").read_bytes() == (tmp_path / "leg.nii.gz").read_bytes()
        draw(one, "Space")
        press(one, "Control+s")
        says(one, "Saved results/labels/leg_drawn.nii.gz")
        one.reload()
        one.wait_for_selector("body[data-ready]")
        other = visit(server, expect_errors=True)
        for tab in (one, other):
            tab.click('[data-key="scan results/uploads/leg.nii.gz"]')
            says(tab, "is open")
            tab.click('[data-key="labels results/labels/leg_drawn.nii.gz"]')
            says(tab, "1 structures")
            tab.focus("#canvas")
        press(one, "4", "ArrowUp", "Space", "Control+s")
        says(one, "Saved results/labels/leg_drawn.nii.gz")
        press(other, "4", "ArrowDown", "Space", "Control+s")
        says(other, "yours is beside it")
        kept = [
            np.flatnonzero(ids(folder / f"results/labels/leg_drawn{n}.nii.gz").any(axis=(0, 1))) for n in ("", "-2")
        ]
        assert [len(one) for one in kept] == [2, 2] and kept[0][0] - kept[1][0] == 1

        press(one, "ArrowUp", "ArrowUp", "Space")
        port = server.port
    press(one, "Control+s")
    says(one, "Start it again with --port")
    with page_of(folder, port=port, token="another") as server:
        press(one, "Control+s")
        says(one, "an old token")
        visit(server, expect_errors=True)
        press(one, "Control+s")
        says(one, "Saved results/labels/leg_drawn.nii.gz")
        assert np.ptp(np.flatnonzero(ids(folder / "results/labels/leg_drawn.nii.gz").any(axis=(0, 1)))) == 3


def draw(tab, *keys):
    tab.click('[data-key="scan results/uploads/leg.nii.gz"]')
    says(tab, "is open")
    tab.fill("#structure-name", "femur")
    press(tab, "Enter")
    tab.focus("#canvas")
    press(tab, "4", *keys)
