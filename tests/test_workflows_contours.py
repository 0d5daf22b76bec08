"""`tfmuscle contours` and `fill-contours`: files for 3D Slicer and ITK-SNAP, edited there, and read back."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from test_contours import GRIDS, MUSCLES, blobs

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.io import read_label_image, write_volume
from tfmuscle.io.label_tables import read_label_table
from tfmuscle.io.markups import read_markups, write_markups
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows.contours import contours, fill_contours, snap_table

GRID = Geometry((20, 24, 6), GRIDS["oblique"][0])


def run(*words, code=0):
    result = CliRunner().invoke(tfmuscle_group, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def labels(tmp_path):
    """A soleus of three slices with a hole, and a popliteus beside it, with their names."""
    array = np.zeros(GRID.shape, np.uint8)
    array[3:13, 4:14, 1:4], array[6:9, 7:10, 2] = 2, 0
    array[13:18, 4:14, 2] = 5
    write_volume(tmp_path / "labels.nii.gz", Volume(array, GRID))
    (tmp_path / "labels.json").write_text(json.dumps(MUSCLES.to_dict()))
    write_volume(tmp_path / "scan.nii.gz", Volume(np.zeros(GRID.shape, np.float32), GRID))
    return tmp_path / "labels.nii.gz"


@pytest.fixture
def drawn(labels, tmp_path):
    contours(labels, tmp_path / "drawn", simplified=False)
    return tmp_path / "drawn"


def filled(folder, tmp_path, **options):
    return fill_contours(folder, tmp_path / "scan.nii.gz", tmp_path / "out" / "new.nii.gz", **options)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content["markups"])
    path.write_text(json.dumps(content))


def curve(index, **more):
    """A curve as 3D Slicer saves it: in LPS, without a name."""
    positions = (GRID.world(index) * (-1, -1, 1)).tolist()
    controls = [{"id": str(n), "position": position, "selected": True} for n, position in enumerate(positions)]
    kind = {"type": "ClosedCurve", "coordinateSystem": "LPS", "coordinateUnits": "mm"}
    return {"@schema": "markups-schema-v1.0.3.json#", "markups": [kind | {"controlPoints": controls} | more]}


SQUARE = [(1.6, 15.6, 4), (1.6, 19.4, 4), (5.4, 19.4, 4), (5.4, 15.6, 4)]
"""Rows 2..5, columns 16..19 of slice 4."""


# the files


def test_what_is_written(labels, drawn):
    assert sorted(path.name for path in drawn.iterdir()) == [
        *("contours.json", "labels.label", "labels.nii.gz", "popliteus.mrk.json", "soleus.mrk.json")
    ]
    np.testing.assert_array_equal(read_label_image(drawn / "labels.nii.gz").array, read_label_image(labels).array)
    content = json.loads((drawn / "soleus.mrk.json").read_text())
    assert content["@schema"].endswith("markups-schema-v1.0.3.json#")
    names = [markup["name"] for markup in content["markups"]]
    assert names == ["soleus-0001-1", "soleus-0002-1", "soleus-0002-2", "soleus-0003-1"]
    for markup in content["markups"]:
        assert (markup["type"], markup["coordinateSystem"], markup["coordinateUnits"]) == ("ClosedCurve", "LPS", "mm")
        assert {point["positionStatus"] for point in markup["controlPoints"]} == {"defined"}
    first = np.array([point["position"] for point in content["markups"][0]["controlPoints"]]) * (-1, -1, 1)
    corners = {(a, b, 1.0) for a in (2.5, 12.5) for b in (3.5, 13.5)}
    assert {tuple(place) for place in GRID.index(first).round(3).tolist()} == corners


def test_the_table_for_itk_snap(drawn, data_dir):
    table = read_label_table(drawn / "labels.label")
    assert table == MUSCLES
    theirs = (data_dir / "thigh_fat_water" / "labels.itksnap.label").read_text().splitlines()
    rows = [line.split(maxsplit=7) for line in snap_table(MUSCLES).splitlines() if not line.startswith("#")]
    example = [line.split(maxsplit=7) for line in theirs if not line.startswith("#")]
    assert rows[0] == example[0]  # "Clear Label"
    assert [len(row) for row in rows] == [8] * 5
    assert all(0 <= int(part) <= 255 for row in rows for part in row[1:4])
    assert all(row[4:7] == example[1][4:7] for row in rows[1:])


def test_simplified_files_and_the_table_of_the_command(tmp_path):
    array = blobs((30, 30, 30), sigma=4.0, singles=0)
    write_volume(tmp_path / "a.nii.gz", Volume(array, Geometry(array.shape, GRIDS["flipped"][0])))
    (tmp_path / "a.json").write_text(json.dumps(MUSCLES.to_dict()))
    result = run("contours", "-i", tmp_path / "a.nii.gz", "-o", tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "contours.json").read_text())["structures"]
    assert [row["structure"] for row in rows] == ["soleus", "popliteus", "fibulari", "ignore"]
    for row in rows:
        curves = read_markups(tmp_path / "out" / f"{row['structure']}.mrk.json")
        assert (len(curves), sum(map(len, curves.values()))) == (row["curves"], row["points"])
        assert row["points"] < row["corners"] and 0.8 < row["dice"] < 1
        assert row["voxels"] == (array == row["id"]).sum()
    assert "4 structures in" in result.output and "curve type linear" in result.output
    run("fill-contours", "-i", tmp_path / "out", "-r", tmp_path / "a.nii.gz", "-o", tmp_path / "b.nii.gz")
    again, kept = (read_label_image(path).array for path in (tmp_path / "b.nii.gz", tmp_path / "out" / "labels.nii.gz"))
    np.testing.assert_array_equal(again, kept)
    assert read_label_table(tmp_path / "b.json").ignore == 255


# back


@pytest.mark.parametrize("code", ["LPS", "SAR", "IRP"])
def test_labels_come_back_on_the_scans_own_axes(labels, drawn, tmp_path, code):
    before = read_label_image(labels)
    write_volume(tmp_path / "turned.nii.gz", before.reoriented(code))
    made = fill_contours(drawn, tmp_path / "turned.nii.gz", tmp_path / "new.nii.gz")
    np.testing.assert_array_equal(made.labels.array, before.reoriented(code).array)
    assert read_label_image(tmp_path / "new.nii.gz").geometry.same_grid(before.reoriented(code).geometry)
    assert (made.source, made.missing) == ("curves", ("fibulari",))
    assert [row["voxels"] for row in made.rows] == [291, 50, 0]  # 3 * 10 * 10 - 9; 5 * 10
    assert made.rows[1]["ml"] == pytest.approx(50 * 0.9 * 1.1 * 5 / 1000)


def test_moved_points_added_and_deleted_curves(labels, drawn, tmp_path):
    def change(markups):
        for point in markups[0]["controlPoints"]:  # slice 1 of the soleus: rows 3..12 become 1..12
            place = GRID.index(np.array(point["position"]) * (-1, -1, 1))
            place[0] = 0.5 if place[0] < 5 else place[0]
            point["position"] = (GRID.world(place) * (-1, -1, 1)).tolist()
        del markups[1:3]  # slice 2 with its hole
        markups[1]["controlPoints"] = []  # slice 3, all points deleted in Slicer

    edit(drawn / "soleus.mrk.json", change)
    (drawn / "fibulari-mine.mrk.json").write_text(json.dumps(curve(SQUARE)))
    (drawn / "popliteus-0002-1.mrk.json").write_text(json.dumps(curve([(13, 5, 2), (13, 8, 2), (15, 8, 2)])))
    made = filled(drawn, tmp_path)
    expected = np.zeros(GRID.shape, int)
    expected[1:13, 4:14, 1] = 2
    expected[2:6, 16:20, 4] = 9
    # the triangle replaces the old curve; centres on it are inside: 4 + 3 (the slant passes between) + 1
    expected[13, 5:9, 2], expected[14, 7:9, 2], expected[15, 8, 2] = 5, 5, 5
    np.testing.assert_array_equal(made.labels.array, expected)
    assert made.source == "curves" and made.missing == ()


def test_a_file_taken_away_is_a_structure_gone(drawn, tmp_path):
    (drawn / "popliteus.mrk.json").unlink()
    result = run("fill-contours", "-i", drawn, "-r", tmp_path / "scan.nii.gz", "-o", tmp_path / "new.nii.gz")
    assert "No voxel of popliteus, fibulari: background" in result.output
    assert "1 structures in" in result.output and "read from the curves" in result.output


def test_labels_edited_in_itk_snap(drawn, tmp_path):
    edited = read_label_image(drawn / "labels.nii.gz")
    edited.array[0, 0, 0], edited.array[5, 5, 5] = 9, 255
    write_volume(drawn / "labels.nii.gz", edited)
    made = filled(drawn, tmp_path)
    assert made.source == "labels" and made.label_map.ignore == 255
    np.testing.assert_array_equal(made.labels.array, edited.array)
    write_volume(tmp_path / "elsewhere.nii.gz", edited)
    table = drawn / "labels.label"
    np.testing.assert_array_equal(
        filled(tmp_path / "elsewhere.nii.gz", tmp_path, names=table).labels.array, edited.array
    )
    with pytest.raises(DataError, match="no names beside it; give a label table with --labels"):
        filled(tmp_path / "elsewhere.nii.gz", tmp_path)
    edited.array[1, 1, 1] = 77
    write_volume(drawn / "labels.nii.gz", edited)
    with pytest.raises(DataError, match=r"the labels \[77\] have no name in the table"):
        filled(drawn, tmp_path)
    (drawn / "soleus-new.mrk.json").write_text(json.dumps(curve(SQUARE)))
    with pytest.raises(DataError, match=r"both labels.nii.gz and curves \(soleus-new.mrk.json\) were edited"):
        filled(drawn, tmp_path)


def test_curves_without_a_word_about_their_grid(labels, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "soleus-a.mrk.json").write_text(json.dumps(curve(SQUARE)))
    with pytest.raises(DataError, match="no contours.json in it; give a label table with --labels"):
        filled(tmp_path / "own", tmp_path)
    made = filled(tmp_path / "own", tmp_path, names=tmp_path / "labels.json")
    assert np.argwhere(made.labels.array == 2).min(axis=0).tolist() == [2, 16, 4]
    assert (made.labels.array == 2).sum() == 16


# what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "holds list, an object in braces is needed"),
        ('{"markups": {"type": "ClosedCurve"}}', "no list of markups"),
        (curve(SQUARE, type="Fiducial"), "is of the type 'Fiducial'; only closed curves"),
        (curve(SQUARE, coordinateUnits="um"), "is in 'um'; mm are needed"),
        (curve(SQUARE, coordinateUnits=["cm", "UCUM", "centimetre"]), r"is in \['cm'.*mm are needed"),
        (curve(SQUARE, coordinateSystem="IJK"), "coordinate system 'IJK'; LPS or RAS is needed"),
        (curve(SQUARE, coordinateSystem=["LPS"]), r"coordinate system \['LPS'\]; LPS or RAS is needed"),
        (curve(SQUARE, coordinateSystem=""), "coordinate system ''; LPS or RAS is needed"),
        (curve(SQUARE, controlPoints=None), "has no list of control points"),
        (curve(SQUARE, controlPoints=[{"position": [1, 2]}] * 3), r"has the position \[1, 2\]; three numbers in mm"),
        (curve(SQUARE, controlPoints=[{"position": [1, 2, float("nan")]}] * 3), "three numbers in mm"),
        (curve(SQUARE, controlPoints=[{"position": [True, 2, 3]}] * 3), "three numbers in mm"),
        (curve(SQUARE[:1]), r"has 1 point\(s\), which enclose nothing"),
        (curve(SQUARE[:2]), r"has 2 point\(s\), which enclose nothing"),
        (curve(SQUARE, name="tibia-1"), "of the structure 'tibia'; there are soleus, popliteus, fibulari, ignore"),
        (curve([(90, 1, 1), (95, 1, 1), (95, 4, 1)]), "lies outside the scan's grid"),
        (curve([(1, 1, 1), (5, 1, 1), (5, 4, 3)]), "leaves its slice"),
    ],
)
def test_damaged_curves(drawn, tmp_path, content, message):
    bad = drawn / "soleus-new.mrk.json"
    bad.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message) as error:
        filled(drawn, tmp_path)
    assert "soleus-new.mrk.json" in str(error.value)
    assert not (tmp_path / "out").exists()
    result = run("fill-contours", "-i", drawn, "-r", tmp_path / "scan.nii.gz", "-o", tmp_path / "n.nii.gz", code=1)
    assert result.output.startswith("Error: ") and result.output.count("\n") == 1


def test_what_slicer_may_write_too(tmp_path):
    points = GRID.world(SQUARE)
    content = curve(SQUARE, coordinateUnits=["mm", "UCUM", "millimeter"])
    content["markups"][0]["controlPoints"].append({"position": "", "positionStatus": "undefined"})
    ras = curve(SQUARE, coordinateSystem="RAS")["markups"][0] | {"name": "b"}
    content["markups"].append(ras)
    (tmp_path / "two.mrk.json").write_text(json.dumps(content))
    read = read_markups(tmp_path / "two.mrk.json")
    np.testing.assert_allclose(read["two-1"], points, atol=1e-9)
    np.testing.assert_allclose(read["b"], points * (-1, -1, 1), atol=1e-9)
    content["markups"][0]["name"] = "b"
    (tmp_path / "two.mrk.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="two curves are called 'b'"):
        read_markups(tmp_path / "two.mrk.json")
    with pytest.raises(ValueError, match=r"curves are written as .mrk.json"):
        write_markups(tmp_path / "a.json", {}, colour=(1, 2, 3))


def test_nothing_is_written_over(labels, drawn, tmp_path):
    contours(labels, drawn)  # its own, unedited
    (drawn / "soleus-new.mrk.json").write_text(json.dumps(curve(SQUARE)))
    with pytest.raises(DataError, match=r"soleus-new.mrk.json was edited or added since and would be lost"):
        contours(labels, drawn)
    (drawn / "soleus-new.mrk.json").unlink()
    (drawn / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="notes.txt was edited or added"):
        contours(labels, drawn)
    for out, message in ((tmp_path, "is an input and would be lost"), (labels.parent / "labels.json", "is a file")):
        with pytest.raises(DataError, match=message):
            contours(labels, out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something else; choose a new folder"):
        contours(labels, tmp_path / "other")
    with pytest.raises(DataError, match="is an input and would be lost"):
        fill_contours(drawn, tmp_path / "scan.nii.gz", tmp_path / "scan.nii.gz")


def test_files_that_are_not_read_are_named(drawn, tmp_path):
    """ITK-SNAP and Slicer may save an edited image or curve under a name of their own."""
    edited = read_label_image(drawn / "labels.nii.gz")
    write_volume(drawn / "Segmentation.nii.gz", edited)
    (drawn / "soleus-new.json").write_text(json.dumps(curve(SQUARE)))
    (drawn / ".DS_Store").touch()
    assert filled(drawn, tmp_path).unread == ("Segmentation.nii.gz", "soleus-new.json")
    words = "fill-contours", "-i", drawn, "-r", tmp_path / "scan.nii.gz", "-o"
    for _ in range(2):  # its own output in the folder is none of them
        told = run(*words, drawn / "new.nii.gz").output
        assert "Not read: Segmentation.nii.gz, soleus-new.json; curves end in .mrk.json, an image is given" in told
    assert filled(drawn / "Segmentation.nii.gz", tmp_path, names=drawn / "labels.label").unread == ()


def test_a_scan_of_another_place_is_refused_and_the_folder_named(drawn, tmp_path):
    far = Geometry(GRID.shape, GRID.affine + np.outer([1, 0, 0, 0], [0, 0, 0, 900.0]))
    write_volume(tmp_path / "far.nii.gz", Volume(np.zeros(GRID.shape, np.float32), far))
    with pytest.raises(
        DataError, match="drawn: 341 of 341 labelled voxels .100 %. lie outside the scan; give the scan that"
    ):
        fill_contours(drawn, tmp_path / "far.nii.gz", tmp_path / "new.nii.gz")
    assert not (tmp_path / "new.nii.gz").exists()


def shifted(path, slices):
    """Writes an empty scan of the same grid, moved along the third axis."""
    moved = Geometry(GRID.shape, GRID.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, slices], [0, 0, 0, 1]]))
    write_volume(path, Volume(np.zeros(GRID.shape, np.float32), moved))
    return path


def test_labels_beside_the_scan_are_told_or_refused(labels, drawn, tmp_path):
    """Of the soleus 100 - 9 + 2 * 100 voxels, of the popliteus 50: slice 1 has 100 of 341, slices 1 and 2 have 241."""
    near, far = shifted(tmp_path / "near.nii.gz", 2), shifted(tmp_path / "far.nii.gz", 3)
    told = run("contours", "-i", labels, "-o", tmp_path / "near", "-r", near).stderr
    assert "Note: 100 of 341 labelled voxels (29 %) lie outside the scan and are left out" in told
    told = run("fill-contours", "-i", drawn, "-r", near, "-o", tmp_path / "new.nii.gz").stderr
    assert "Note: 100 of 341 labelled voxels (29 %) lie outside" in told
    message = r"241 of 341 labelled voxels \(71 %\) lie outside the scan; give the scan that they belong to"
    with pytest.raises(DataError, match=message):
        contours(labels, tmp_path / "far", reference=far)
    with pytest.raises(DataError, match=message):
        fill_contours(drawn, far, tmp_path / "far_new.nii.gz")
    assert not (tmp_path / "far").exists() and not (tmp_path / "far_new.nii.gz").exists()
    said = []
    contours(labels, tmp_path / "same", reference=tmp_path / "scan.nii.gz", say=said.append)
    assert not said


def test_other_inputs_that_are_none(labels, drawn, tmp_path):
    scan = tmp_path / "scan.nii.gz"
    with pytest.raises(ValueError, match="choose one of these endings"):
        fill_contours(drawn, scan, tmp_path / "new.png")
    with pytest.raises(DataError, match="there is no such file or folder"):
        filled(tmp_path / "nowhere", tmp_path)
    with pytest.raises(DataError, match="nothing is labelled"):
        contours(scan, tmp_path / "drawn2")
    far = Geometry(GRID.shape, GRID.affine + np.outer([1, 0, 0, 0], [0, 0, 0, 900.0]))
    write_volume(tmp_path / "far.nii.gz", Volume(np.zeros(GRID.shape, np.float32), far))
    with pytest.raises(DataError, match="labelled voxels .100 %. lie outside the scan"):
        contours(labels, tmp_path / "drawn2", reference=tmp_path / "far.nii.gz")
    (drawn / "labels.nii.gz").unlink()
    for content in ({"files": {}}, {"files": {}, "grid": {"shape": [1], "affine": 3}, "labels": {}}):
        (drawn / "contours.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="no usable grid or names"):
            filled(drawn, tmp_path)
    (drawn / "contours.json").write_text("{}")
    with pytest.raises(DataError, match="names no files; make the contours again"):
        filled(drawn, tmp_path)
    for path in drawn.glob("*.mrk.json"):
        path.unlink()
    (drawn / "contours.json").unlink()
    (drawn / "labels.label").unlink()
    with pytest.raises(DataError, match="no curves"):
        filled(drawn, tmp_path)


def test_ids_without_names_and_a_scan_of_other_slices(labels, tmp_path):
    (tmp_path / "labels.json").unlink()
    thick = Geometry((20, 24, 3), GRID.affine @ np.diag([1, 1, 2, 1.0]))
    write_volume(tmp_path / "thick.nii.gz", Volume(np.zeros(thick.shape, np.float32), thick))
    rows = contours(labels, tmp_path / "drawn", reference=tmp_path / "thick.nii.gz", simplified=False)
    # slices 0, 2, 4 of the labels: one of the soleus with its hole and the popliteus
    assert [(row["structure"], row["curves"], row["voxels"]) for row in rows] == [
        ("label_2", 2, 91),
        ("label_5", 1, 50),
    ]
