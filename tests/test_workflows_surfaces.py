"""`tfmuscle voxelise` and `tfmuscle surfaces`: files in, files out, what is refused and how it is said."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from test_surfaces import CENTRE, GRIDS, ball_mask, box

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.io import read_mesh, read_volume, write_mesh, write_volume
from tfmuscle.io.label_tables import read_label_table
from tfmuscle.volume import Geometry, Mesh, Volume
from tfmuscle.workflows.surfaces import surfaces, voxelise

GRID = Geometry((20, 20, 12), np.diag([-1.0, 1.0, 2.0, 1.0]) + np.outer([1, 1, 1, 0], [0, 0, 0, 1]) * 40)
"""Column 0 runs to the left from x = 40 to 21; y from 40 to 59; z from 40 to 62."""


def run(*words, code=0):
    result = CliRunner().invoke(tfmuscle_group, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def scan(tmp_path):
    write_volume(tmp_path / "scan.nii.gz", Volume(np.zeros(GRID.shape, np.float32), GRID))
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def bones(tmp_path):
    """Two boxes that share two columns of voxels, one PLY in RAS, one STL in LPS that says so."""
    write_mesh(tmp_path / "bones" / "Femur_Left.ply", box((22.5, 41.5, 43), (30.5, 45.5, 53)))
    write_mesh(tmp_path / "bones" / "tibia.stl", box((28.5, 41.5, 43), (36.5, 45.5, 53)), space="lps")
    (tmp_path / "bones" / "notes.txt").write_text("not a surface")
    return tmp_path / "bones"


def test_several_surfaces_become_labels_on_the_scans_grid(scan, bones, tmp_path):
    result = run("voxelise", "-i", bones, "-r", scan, "-o", tmp_path / "out" / "labels.nii.gz")
    labels = read_volume(tmp_path / "out" / "labels.nii.gz")
    assert labels.geometry.same_grid(GRID)
    assert labels.array.dtype == np.uint8
    # x 23..30, y 42..45, z 44..52 in steps of 2: 8 * 4 * 5 voxels each, of which x 29 and 30 are both's
    assert [int((labels.array == key).sum()) for key in (1, 2)] == [6 * 4 * 5, 6 * 4 * 5]
    middle = GRID.index([(25, 43, 48), (29, 43, 48), (35, 43, 48)]).round().astype(int)
    assert labels.array[tuple(middle.T)].tolist() == [1, 0, 2]
    assert "40 voxels lie in two or more surfaces and are background" in result.output  # 2 * 4 * 5
    about = json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8"))
    assert about["labels"] == {"background": 0, "femur_left": 1, "tibia": 2}
    assert read_label_table(tmp_path / "out" / "labels.json").structures == ("femur_left", "tibia")
    for row in about["structures"]:
        assert (row["voxels"], row["overlap_voxels"], row["remarks"]) == (160, 40, [])
        assert row["surface_ml"] == pytest.approx(0.320)  # 8 * 4 * 10 mm
        assert row["volume_error_percent"] == pytest.approx(0)
    assert about["overlap_voxels"] == 40


def test_ids_come_from_a_table_and_names_are_compared_as_words(scan, bones, tmp_path):
    table = tmp_path / "dataset.json"
    table.write_text(json.dumps({"labels": {"background": 0, "Femur left": 7, "tibia": 300, "patella": 3}}))
    made = voxelise([bones / "tibia.stl", bones / "Femur_Left.ply"], scan, tmp_path / "l.nii.gz", names=table)
    assert set(np.unique(read_volume(tmp_path / "l.nii.gz").array)) == {0, 7, 300}
    assert made.missing == ("patella",)
    result = run("voxelise", "-i", bones, "-r", scan, "-o", tmp_path / "l.nii.gz", "--labels", table)
    assert "No surface for patella: background in these labels" in result.output
    table.write_text(json.dumps({"labels": {"femur": 1}}))
    with pytest.raises(DataError, match=r"names no 'femur_left' \(nor tibia\); rename the file to one of femur$"):
        voxelise(bones, scan, tmp_path / "m.nii.gz", names=table)


def test_every_unusable_surface_is_named_and_nothing_is_written(scan, bones, tmp_path):
    femur = read_mesh(bones / "Femur_Left.ply")
    write_mesh(bones / "open.ply", Mesh(femur.vertices, femur.faces[1:]))
    write_mesh(bones / "far.ply", Mesh(femur.vertices * (-1, -1, 1), femur.faces))
    write_mesh(bones / "lost.ply", Mesh(femur.vertices + 500, femur.faces))
    write_mesh(bones / "thin.ply", box((22.5, 41.5, 44.2), (30.5, 45.5, 45.8)))
    (bones / "broken.stl").write_bytes(b"solid")
    result = run("voxelise", "-i", bones, "-r", scan, "-o", tmp_path / "out.nii.gz", code=1)
    line = result.stderr.strip()
    assert "\n" not in line
    assert "Error: 5 of 7 surfaces cannot be used, nothing written: " in line
    assert "open.ply: open, 3 boundary edges; close it where it was made, or allow open surfaces" in line
    assert "far.ply: outside the scan (it would lie inside with --space lps); check scan and coordinates" in line
    assert "lost.ply: outside the scan; check scan and coordinates" in line
    assert "thin.ply: encloses no voxel centre; it is thinner than the grid or has no inside" in line
    assert "broken.stl: not a usable surface" in line
    assert not list(tmp_path.glob("out*"))
    run("voxelise", "-i", bones / "far.ply", "-r", scan, "-o", tmp_path / "out.nii.gz", "--space", "lps")
    assert (read_volume(tmp_path / "out.nii.gz").array > 0).sum() == 160
    result = run("voxelise", "-i", bones / "open.ply", "-r", scan, "-o", tmp_path / "out.nii.gz", "--allow-open")
    assert "open (3 boundary edges), filled by vote" in result.output
    assert abs((read_volume(tmp_path / "out.nii.gz").array > 0).sum() - 160) <= 20


def test_a_surface_partly_outside_is_kept_and_told(scan, tmp_path):
    write_mesh(tmp_path / "shaft.ply", box((22.5, 41.5, 43), (30.5, 45.5, 93)))
    made = voxelise(tmp_path / "shaft.ply", scan, tmp_path / "out.nii.gz")
    assert made.rows[0]["voxels"] == 8 * 4 * 10  # z 44 to 62
    assert made.rows[0]["remarks"][0].endswith("of it outside the scan")
    assert made.rows[0]["volume_error_percent"] == pytest.approx(100 * (20 / 50 - 1))


def test_what_voxelise_refuses(scan, bones, tmp_path):
    def refused(match, *, sources=bones, reference=scan, out=tmp_path / "o.nii.gz", error=DataError, **settings):
        with pytest.raises(error, match=match):
            voxelise(sources, reference, out, **settings)

    refused("there is no such file or folder; check the path", sources=tmp_path / "none")
    refused("no surface; use .ply or .stl files or a folder of them", sources=scan)
    refused("there is no such file", reference=tmp_path / "none.nii.gz")
    refused("labels are written as .nii.gz", out=tmp_path / "o.png", error=ValueError)
    refused("space is 'xyz'; use 'ras' or 'lps'", space="xyz", error=ValueError)
    refused("is the scan itself; choose another output", out=scan)
    (tmp_path / "o.json").write_text('{"RepetitionTime": 2}')
    refused("holds something else and the names would replace it; choose another output")
    write_mesh(bones / "FEMUR-left.stl", box((0, 0, 0), (1, 1, 1)))
    refused("is 'femur_left' too; give every structure one file", out=tmp_path / "p.nii.gz")
    write_mesh(tmp_path / "background.ply", box((0, 0, 0), (1, 1, 1)))
    refused(
        "'background' is no structure; rename the file", sources=tmp_path / "background.ply", out=tmp_path / "p.nii"
    )
    result = run("voxelise", "-i", bones, "-r", scan, "-o", tmp_path / "o.png", code=2)
    assert "choose one of these endings" in result.output


def label_file(path, *, structures=2):
    """A ball as 3 and, apart from it, a smaller one as 9, on an oblique grid; 255 is unlabelled."""
    geometry = GRIDS["oblique"]
    array = np.where(ball_mask(geometry, 14.0), 3, 0).astype(np.uint8)
    if structures > 1:
        positions = geometry.world(np.indices(geometry.shape).reshape(3, -1).T).reshape(*geometry.shape, 3)
        array[np.linalg.norm(positions - CENTRE - (19, 0, 0), axis=-1) < 4] = 9
        array[0, 0, 0] = 255
    write_volume(path, Volume(array, geometry))
    return array


@pytest.mark.parametrize(("format_", "space"), [("ply", "ras"), ("stl", "lps")])
def test_labels_become_surfaces_with_a_measured_table(format_, space, tmp_path):
    array = label_file(tmp_path / "leg.nii.gz")
    (tmp_path / "leg.json").write_text(json.dumps({"labels": {"../Femur": 3, "ignore": 255}}))
    words = ("surfaces", "-i", tmp_path / "leg.nii.gz", "-o", tmp_path / "out", "--format", format_, "--space", space)
    result = run(*words)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [f"femur.{format_}", f"label_9.{format_}", "surfaces.csv", "surfaces.json"]
    )
    rows = list(csv.DictReader((tmp_path / "out" / "surfaces.csv").read_text(encoding="utf-8").splitlines()))
    for row, key, radius in zip(rows, (3, 9), (14, 4), strict=True):
        assert (row["subject"], row["id"]) == ("leg", str(key))
        assert int(row["voxels"]) == (array == key).sum()
        assert float(row["dice"]) > (0.99 if radius > 10 else 0.95)  # the small one is three slices thick
        assert abs(float(row["volume_error_percent"])) < 0.5
        mesh = read_mesh(tmp_path / "out" / row["file"])  # the header says the space
        assert mesh.volume_ml == pytest.approx(float(row["surface_ml"]))
        assert mesh.volume_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.01 if radius > 10 else 0.1)
    assert "2 surfaces; the table is in" in result.output
    back = voxelise(tmp_path / "out", tmp_path / "leg.nii.gz", tmp_path / "back.nii.gz")
    again = back.labels.array == back.label_map.id_of("femur")
    assert 2 * (again & (array == 3)).sum() / (again.sum() + (array == 3).sum()) > 0.99


def test_a_folder_of_subjects_goes_on_after_a_bad_one_and_resumes(tmp_path):
    for name in ("a", "b"):
        label_file(tmp_path / "labels" / f"{name}.nii.gz", structures=1)
    write_volume(
        tmp_path / "labels" / "c.nii.gz", Volume(np.zeros((3, 3, 3), np.uint8), Geometry((3, 3, 3), np.eye(4)))
    )
    write_volume(tmp_path / "labels" / "d.nii.gz", Volume(np.full((3, 3, 3), 0.5), Geometry((3, 3, 3), np.eye(4))))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"femur": 3}}))
    result = run("surfaces", "-i", tmp_path / "labels", "-o", tmp_path / "out", code=1)
    failed = [line for line in result.stderr.splitlines() if line.startswith("Failed:")]
    assert [line.split(": ")[1] for line in failed] == ["c", "d"]
    assert failed[0].endswith("nothing is labelled; label it or leave it out")
    assert failed[1].endswith(
        "labels must be whole numbers from 0 on; give a label image, resampled by nearest, no grey values"
    )
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.ply")}
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in before) == ["a/femur.ply", "b/femur.ply"]
    (tmp_path / "out" / "b" / "femur.ply").unlink()
    made = surfaces(tmp_path / "labels", tmp_path / "out")
    assert len(made.rows) == 2
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.ply")}
    changed = {path.parent.name for path in before if before[path] != after[path]}
    assert changed == {"b"}
    seen = []
    surfaces(tmp_path / "labels", tmp_path / "out", smoothing=0.5, progress=lambda *state: seen.append(state))
    assert seen == [(0, 1, "a femur"), (1, 1, ""), (0, 1, "b femur"), (1, 1, "")]  # other settings: made anew


def test_what_surfaces_refuses(tmp_path):
    label_file(tmp_path / "a.nii.gz")
    for settings in ({"suffix": ".obj"}, {"space": "xyz"}, {"smoothing": -1.0}, {"smoothing": float("nan")}):
        with pytest.raises(ValueError, match="use .ply or .stl, ras or lps, and 0 or more"):
            surfaces(tmp_path / "a.nii.gz", tmp_path / "out", **settings)
    with pytest.raises(DataError, match="no such file"):
        surfaces(tmp_path / "a.nii.gz", tmp_path / "out", names=tmp_path / "none.json")
    for name in ("leg.nii.gz", "leg.nrrd"):
        label_file(tmp_path / "twice" / name)
    with pytest.raises(DataError, match=r"leg.nrrd: leg.nii.gz is 'leg' too"):
        surfaces(tmp_path / "twice", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no label file; use images of whole numbers"):
        surfaces(tmp_path / "empty", tmp_path / "out")
    assert "no such file" in surfaces(tmp_path / "b.nii.gz", tmp_path / "out").failures["b"]
    assert not (tmp_path / "out").exists()


def test_real_surfaces_give_the_real_labels(data_dir, tmp_path):
    folder = data_dir / "visible_human"
    table = tmp_path / "table.json"
    table.write_text(
        json.dumps({"labels": {"VHF_Left_Bone_Patella_smooth": 39, "VHF_Left_Muscle_Popliteus_smooth": 22}})
    )
    files = [data_dir / "surfaces" / f"VHF_Left_{name}_smooth.stl" for name in ("Bone_Patella", "Muscle_Popliteus")]
    made = voxelise(files, folder / "VHF_Left_labels_1mm.nii.gz", tmp_path / "out.nii.gz", names=table)
    truth = read_volume(folder / "VHF_Left_labels_1mm.nii.gz").array
    mesh_ml = json.loads((folder / "VHF_Left_labels_1mm.json").read_text(encoding="utf-8"))[
        "volume_cm3_mesh_overlap_final"
    ]
    for row, key, name in zip(made.rows, (39, 22), ("patella", "popliteus"), strict=True):
        found = made.labels.array == key
        assert 2 * (found & (truth == key)).sum() / (found.sum() + (truth == key).sum()) > 0.9999
        assert row["surface_ml"] == pytest.approx(mesh_ml[name][0], abs=0.01)
        assert abs(row["volume_error_percent"]) < 0.5
