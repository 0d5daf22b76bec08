"""Scans and labels as the page gets them, and drawn labels that come back; judged by nibabel."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
import trimesh
from dicom_files import OBLIQUE, write_series
from gui_pages import AFFINE, nifti_bytes, page_of, write_leg

from tfmuscle.gui import volumes
from tfmuscle.io import read_volume

SCAN, LABELS = "leg.nii.gz", "labels/leg.nii.gz"
NAMES = ["soleus_left", "tibia_left"]


@pytest.fixture
def leg(tmp_path):
    ids = write_leg(tmp_path)
    with page_of(tmp_path) as page:
        yield page, ids


def send(page, indices, *, names=NAMES, affine=AFFINE, **fields):
    fields = {"scan": SCAN, "labels": LABELS, "names": json.dumps(names)} | fields
    fields = {key: value for key, value in fields.items() if value is not None}
    return page.call("POST", "/api/edits", body=nifti_bytes(indices.astype(np.uint8), affine), **fields)


def loaded(page, path):
    return np.asarray(nib.load(page.folder / path).dataobj)


def read_bytes(content):
    return nib.Nifti1Image.from_bytes(content)


def test_the_folder_is_sorted_without_opening_images(tmp_path):
    write_leg(tmp_path)
    write_series(tmp_path / "study" / "t1", count=4)
    for folder, name in (
        ("run", "train.json"),
        ("bundle", "bundle.json"),
        ("cascade", "cascade.json"),
        ("data", "dataset.json"),
    ):
        (tmp_path / folder / "deeper").mkdir(parents=True)
        (tmp_path / folder / name).write_text("{}")
        (tmp_path / folder / "deeper" / "x.nii.gz").write_text("no image")
    with page_of(tmp_path) as page:
        found = page.get("/api/workspace")
    assert [one["path"] for one in found["scans"]] == [SCAN, "data/deeper/x.nii.gz"]  # none from inside a model
    assert [one["path"] for one in found["labels"]] == [LABELS]
    assert found["dicom"] == [{"path": "study/t1"}] and found["datasets"] == [{"path": "data"}]
    assert {(one["path"], one["kind"]) for one in found["models"]} == {
        ("run", "run"), ("bundle", "bundle"), ("cascade", "cascade"),
    }  # fmt: skip


def test_a_nifti_scan_is_sent_as_it_is(leg):
    page, _ = leg
    assert page.get("/api/scan.nii", path=SCAN) == (page.folder / SCAN).read_bytes()
    assert page.headers["content-encoding"] == "gzip"  # the browser unpacks
    about = page.get("/api/scan", path=SCAN)
    assert about["shape"] == [20, 24, 12] and about["orientation"] == "LPS"
    assert np.allclose(about["affine"], AFFINE, atol=1e-5)
    assert not (page.folder / ".tfmuscle" / "series").exists()


def test_a_dicom_series_is_listed_and_converted_once(tmp_path):
    write_series(tmp_path / "dicom", count=5, cosines=OBLIQUE, SeriesNumber=4, SeriesDescription="T1 leg")
    expected = read_volume(tmp_path / "dicom")
    with page_of(tmp_path) as page:
        (series,) = page.get("/api/series", path="dicom")["series"]
        assert series["usable"] and series["shape"] == [6, 4, 5] and series["modality"] == "MR"
        image = read_bytes(page.get("/api/scan.nii", path="dicom", series=series["name"]))
        assert np.array_equal(np.asarray(image.dataobj), expected.array)
        assert np.allclose(image.affine, expected.geometry.affine, atol=1e-4)
        (made,) = (tmp_path / ".tfmuscle" / "series").rglob("*.nii")
        before = made.stat().st_mtime_ns
        page.get("/api/scan.nii", path="dicom", series=series["name"])
        assert made.stat().st_mtime_ns == before
        write_series(tmp_path / "dicom", count=6, cosines=OBLIQUE, SeriesNumber=4, SeriesDescription="T1 leg")
        assert page.get("/api/scan", path="dicom", series=series["name"])["shape"] == [6, 4, 6]  # not the old one
        assert "no one series is called" in page.refused("/api/scan", path="dicom", series="other")


def test_a_scan_packed_in_pieces_is_sent_whole_and_a_cut_one_is_told(tmp_path):
    image = np.random.default_rng(4).integers(0, 900, (20, 24, 12)).astype(np.int16)
    content = nib.Nifti1Image(image, AFFINE).to_bytes()
    (tmp_path / "pieces.nii.gz").write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(content)[:-3000])
    with page_of(tmp_path) as page:
        sent = page.get("/api/scan.nii", path="pieces.nii.gz")  # browsers would unpack the first piece only
        assert "content-encoding" not in page.headers
        assert np.array_equal(np.asarray(read_bytes(sent).dataobj), image)
        assert "cut.nii.gz" in page.refused("/api/scan", path="cut.nii.gz")


def test_two_places_in_space_are_sent_as_the_one_that_counts(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), AFFINE)
    other = np.diag([1.0, 1, 1, 1])
    image.set_qform(other, code=2)
    image.set_sform(AFFINE, code=1)
    nib.save(image, tmp_path / "two.nii.gz")
    with page_of(tmp_path) as page:
        sent = read_bytes(page.get("/api/scan.nii", path="two.nii.gz"))
        assert "not a readable NIfTI" in refused_image(page, b"no image at all")
    assert np.allclose(sent.get_sform(), AFFINE, atol=1e-4) and sent.header["sform_code"] >= sent.header["qform_code"]


def refused_image(page, content):
    (page.folder / "bad.nii.gz").write_bytes(content)
    return page.refused("/api/scan", path="bad.nii.gz")


def test_labels_are_indices_with_names_colours_and_volumes(leg):
    page, ids = leg
    table = page.get("/api/labels", path=LABELS, scan=SCAN)["structures"]
    assert [(one["index"], one["id"], one["name"]) for one in table] == [(1, 3, "soleus_left"), (2, 70, "tibia_left")]
    assert table[0]["colour"] != table[1]["colour"]
    voxel_ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    assert table[0]["volume_ml"] == pytest.approx(5 * 4 * 5 * voxel_ml, abs=1e-3)
    image = read_bytes(page.get("/api/labels.nii", path=LABELS, scan=SCAN))
    assert np.array_equal(np.asarray(image.dataobj), (ids == 3) + 2 * (ids == 70))


def test_labels_with_other_axes_lie_on_the_scans_grid(leg):
    page, ids = leg
    image = nib.load(page.folder / LABELS)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("SRA"))
    nib.save(image.as_reoriented(turn), page.folder / "labels" / "turned.nii.gz")
    sent = read_bytes(page.get("/api/labels.nii", path="labels/turned.nii.gz", scan=SCAN))
    assert np.array_equal(np.asarray(sent.dataobj) > 0, ids > 0)
    assert np.allclose(sent.affine, AFFINE, atol=1e-4)


def test_labels_that_cannot_be_shown_say_why(leg, monkeypatch):
    page, ids = leg
    nib.save(nib.Nifti1Image(ids[:-1], AFFINE), page.folder / "labels" / "small.nii.gz")
    reason = page.refused("/api/labels", path="labels/small.nii.gz", scan=SCAN)
    assert "19 x 24 x 12 voxels, not on the grid of the scan (20 x 24 x 12)" in reason
    monkeypatch.setattr(volumes, "MAX_STRUCTURES", 1)
    (page.folder / "labels" / "many.json").write_text((page.folder / "labels" / "leg.json").read_text())
    nib.save(nib.Nifti1Image(ids, AFFINE), page.folder / "labels" / "many.nii.gz")
    assert "2 structures; the page shows 1" in page.refused("/api/labels", path="labels/many.nii.gz", scan=SCAN)
    monkeypatch.setattr(volumes, "MAX_STRUCTURES", 254)
    nib.save(nib.Nifti1Image(ids.astype(np.int32) * (1 << 20), AFFINE), page.folder / "labels" / "high.nii.gz")
    assert "shows ids up to" in page.refused("/api/labels", path="labels/high.nii.gz", scan=SCAN)


def test_a_correction_is_ids_beside_the_original(leg):
    page, ids = leg
    before = (page.folder / LABELS).read_bytes()
    indices = (ids == 3) + 2 * (ids == 70)
    indices[4:9, 5:9, 3], indices[0, 0, 0] = 0, 2
    status, saved = send(page, indices)
    assert status == 200 and saved["path"] == "results/labels/leg_corrected.nii.gz" and not saved["beside"]
    assert saved["changed"] == 5 * 4 + 1
    expected = ids.copy()
    expected[4:9, 5:9, 3], expected[0, 0, 0] = 0, 70
    assert np.array_equal(loaded(page, saved["path"]), expected)
    assert (page.folder / LABELS).read_bytes() == before
    table = page.get("/api/labels", path=saved["path"], scan=SCAN)
    assert [(one["id"], one["name"]) for one in table["structures"]] == [(3, "soleus_left"), (70, "tibia_left")]
    assert table["version"] == saved["version"]
    assert not list((page.folder / ".tfmuscle" / "uploads").iterdir())


def test_a_page_replaces_its_own_correction_and_no_other_pages(leg):
    page, ids = leg
    first = (ids == 3).astype(np.uint8)
    _, mine = send(page, first)
    corrected = mine["path"]
    second = first.copy()
    second[0, 0, 0] = 1
    _, again = send(page, second, labels=corrected, version=mine["version"])
    assert again["path"] == corrected and again["changed"] == 1
    other = first.copy()
    other[1, 1, 1] = 2
    _, theirs = send(page, other, labels=corrected, version=mine["version"])  # does not know the second
    assert theirs["beside"] and theirs["path"] == "results/labels/leg_corrected-2.nii.gz"
    _, third = send(page, other)  # from the original once more
    assert third["path"] == "results/labels/leg_corrected-3.nii.gz"
    assert loaded(page, corrected)[0, 0, 0] == 3 and loaded(page, corrected)[1, 1, 1] == 0
    assert loaded(page, theirs["path"])[1, 1, 1] == 70


def test_new_structures_and_new_labels_get_free_ids(leg):
    page, ids = leg
    indices = 3 * (ids == 3)
    status, saved = send(page, indices, names=[*NAMES, "fibula_left"])
    assert status == 200 and set(np.unique(loaded(page, saved["path"]))) == {0, 71}
    status, drawn = send(page, indices // 3, names=["soleus"], labels=None)
    assert status == 200 and drawn["path"] == "results/labels/leg_drawn.nii.gz"
    assert json.loads((page.folder / "results/labels/leg_drawn.json").read_text())["labels"] == {
        "background": 0,
        "soleus": 1,
    }


def test_voxels_nobody_labelled_stay_unknown(leg):
    page, ids = leg
    (page.folder / "labels" / "leg.json").write_text(
        json.dumps({"labels": {"background": 0, "soleus_left": 3, "ignore": 70}})
    )
    names = [one["name"] for one in page.get("/api/labels", path=LABELS, scan=SCAN)["structures"]]
    assert names == ["soleus_left", "ignore"]
    _, saved = send(page, (ids == 3) + 2 * (ids == 70), names=names)
    assert np.array_equal(loaded(page, saved["path"]), ids)
    about = json.loads((page.folder / "results/labels/leg_corrected.json").read_text())
    assert about["labels"] == {"background": 0, "soleus_left": 3, "ignore": 70}


MOVED = AFFINE + np.array([[0, 0, 0, 5.0]] + [[0, 0, 0, 0]] * 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"affine": MOVED}, "not on the grid of leg"),
        ({"names": ["soleus_left"]}, "index 2, but 1 structures are named"),
        ({"names": ["tibia_left", "soleus_left"]}, "its structures changed since it was opened"),
        ({"names": ["soleus_left"] * 2}, "names two structures"),
        ({"names": [*NAMES, "background"]}, "names two structures, or background"),
        ({"names": [*NAMES, "a\nb"]}, "is no name of a structure"),
        ({"names": ["a"] * 300}, "300 structures; the page takes 254"),
        ({"names": "soleus"}, "no list of texts"),
        ({"scan": "../leg.nii.gz"}, "no name of a file in the folder"),
        ({"labels": "labels/none.nii.gz"}, "no such file"),
    ],
)  # fmt: skip
def test_edits_that_do_not_fit_are_refused_and_leave_nothing(leg, change, reason):
    page, ids = leg
    status, content = send(page, (ids == 3) + 2 * (ids == 70), **change)
    assert status == 400 and reason in content["error"]
    assert not (page.folder / "results").exists()
    uploads = page.folder / ".tfmuscle" / "uploads"
    assert not uploads.exists() or not list(uploads.iterdir())


def test_an_edit_of_another_size_or_of_no_image_is_refused(leg):
    page, ids = leg
    status, content = send(page, ids[:-1])
    assert status == 400 and "19 x 24 x 12 voxels" in content["error"]
    fields = {"scan": SCAN, "labels": LABELS, "names": json.dumps(NAMES)}
    status, content = page.call("POST", "/api/edits", body=b"no image", **fields)
    assert status == 400 and "not a readable NIfTI" in content["error"]
    status, content = page.call("POST", "/api/edits", body=b"", **fields | {"names": "{"})
    assert status == 400 and "not valid JSON" in content["error"]


def test_a_surface_is_sent_in_ras_whatever_its_file_says(tmp_path):
    corners = np.array([[0, 0, 0], [30, 0, 0], [0, 20, 0], [0, 0, 10]], np.float32)
    faces = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
    lines = [f"{x} {y} {z}" for x, y, z in corners * (-1, -1, 1)] + [f"3 {a} {b} {c}" for a, b, c in faces]
    head = "ply\nformat ascii 1.0\ncomment SPACE=LPS\nelement vertex 4\nproperty float x\nproperty float y\n"
    head += "property float z\nelement face 4\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "lps.ply").write_text(head + "\n".join(lines) + "\n")
    (tmp_path / "bad.stl").write_bytes(b"no surface")
    write_leg(tmp_path)
    with page_of(tmp_path) as page:
        assert page.get("/api/workspace")["surfaces"] == [{"path": "bad.stl"}, {"path": "lps.ply"}]
        sent = page.get("/api/surface.ply", path="lps.ply")
        assert "not a usable surface" in page.refused("/api/surface.ply", path="bad.stl")
        assert "not a known surface" in page.refused("/api/surface.ply", path=SCAN)
    (tmp_path / "sent.ply").write_bytes(sent)
    mesh = trimesh.load(tmp_path / "sent.ply", process=False)
    assert sent.startswith(b"ply\nformat binary_little_endian")  # what NiiVue reads
    assert np.array_equal(mesh.vertices, corners) and mesh.volume == pytest.approx(1000)  # 30 * 20 * 10 / 6


def test_old_conversions_make_room(tmp_path, monkeypatch):
    for number in range(3):
        image = nib.Nifti1Image(np.full((8, 8, 8), number, np.int8), AFFINE)  # int8 is converted
        nib.save(image, tmp_path / f"scan{number}.nii.gz")
    monkeypatch.setattr(volumes, "KEPT_BYTES", 2000)
    with page_of(tmp_path) as page:
        for number in range(3):
            page.get("/api/scan.nii", path=f"scan{number}.nii.gz")
    kept = sorted(path.name for path in (tmp_path / ".tfmuscle" / "series").rglob("*.nii"))
    assert kept == ["scan1.nii", "scan2.nii"]  # 864 bytes each
