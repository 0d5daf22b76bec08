"""`tfmuscle sweep-tables` on boxes of voxels whose figures can be worked out by hand."""

import csv
import html
import json
import math

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.evaluation import ALL_STRUCTURES, EvaluationOptions, evaluate
from tfmuscle.evaluation.muscles import read_measured
from tfmuscle.evaluation.published import SWEEPS_NOTES, published_sweeps
from tfmuscle.evaluation.sweeps import Way, profile, surface_error, sweep_table
from tfmuscle.io import read_mesh, write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.report.sweeps import error_colours
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows.sweep_tables import sweep_tables

MUSCLES = LabelMap({1: "soleus", 2: "gastrocnemius"}, ignore=255)
GRID = Geometry((20, 20, 12), np.diag([1.0, 1.0, 2.0, 1.0]))


def sweep(*, shift=0, drawn=()):
    """A box of 6 x 8 x 10 (soleus) and one of 6 x 4 x 10; `drawn` slices are known to the methods."""
    array = np.zeros(GRID.shape, np.uint8)
    array[2 + shift : 8 + shift, 2:10, 1:11] = 1
    array[12:18, 2:6, 1:11] = 2
    array[:, :, list(drawn)] = 255
    return array


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two ways on two subjects: `vnet` is exact, `interpolate/3 slices` has soleus 2 voxels beside the true one."""
    folder = tmp_path_factory.mktemp("sweeps")
    arrays = {"ref": sweep(drawn=(5,)), "exact": sweep(), "shifted": sweep(shift=2)}
    for name, array in arrays.items():
        for subject in ("anna", "bert"):
            write_volume(folder / name / f"{subject}.nii.gz", Volume(array, GRID))
    files = {name: {key: folder / name / f"{key}.nii.gz" for key in ("anna", "bert")} for name in arrays}
    for name, part in (("exact", "test"), ("shifted", "test"), ("exact", "validation")):
        options = EvaluationOptions(context={"part": part, "scale": "reduced"})
        evaluate(files[name], files["ref"], MUSCLES, folder / f"{name}_{part}", options=options)
    return folder


def words(scans, out, *more):
    given = [f"vnet={scans / 'exact_test'}", f"interpolate/3 slices={scans / 'shifted_test'}"]
    labels = [f"vnet={scans / 'exact'}", f"interpolate/3 slices={scans / 'shifted'}"]
    inputs = [word for pair in (("-i", name) for name in given) for word in pair]
    files = [word for pair in (("-p", name) for name in labels) for word in pair]
    return ["sweep-tables", *inputs, *files, "-r", str(scans / "ref"), "-o", str(out), "--shown", "1", *more]


@pytest.fixture(scope="module")
def made(scans):
    result = CliRunner().invoke(tfmuscle_group, words(scans, scans / "out"), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result, scans / "out"


def rows_of(out):
    with (out / "methods.csv").open(encoding="utf-8", newline="") as file:
        return {(row["structure"], row["method"]): row for row in csv.DictReader(file)}


def test_the_table_by_hand(made):
    # of 6 columns 4 overlap: Dice 2*4/12 = 2/3, IoU 4/8, P = R = 4/6; equal volumes; moved by 2 mm
    row = rows_of(made[1])["soleus", "interpolate"]
    expected = {
        "dice": 2 / 3,
        "iou": 0.5,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "volume_error_percent": 0,
        "hausdorff": 2,
    }
    for metric, value in expected.items():
        assert float(row[f"{metric}_mean"]) == pytest.approx(value), metric
        assert float(row[f"{metric}_sd"]) == pytest.approx(0, abs=1e-12)
    assert (row["protocol"], row["part"], row["n"], row["n_undefined"]) == ("3 slices", "test", "2", "0")
    # the other muscle is exact: the mean of both is (2/3 + 1) / 2
    mean = rows_of(made[1])[ALL_STRUCTURES, "interpolate"]
    assert float(mean["dice_mean"]) == pytest.approx(5 / 6)
    exact = rows_of(made[1])[ALL_STRUCTURES, "vnet"]
    assert [float(exact[f"{m}_mean"]) for m in ("dice", "iou", "hausdorff")] == [1, 1, 0]


def test_published_figures_stand_beside_the_means_only(made):
    rows = rows_of(made[1])
    assert float(rows[ALL_STRUCTURES, "vnet"]["dice_published"]) == 0.698
    assert float(rows[ALL_STRUCTURES, "interpolate"]["iou_published"]) == 0.849
    assert math.isnan(float(rows["soleus", "vnet"]["dice_published"]))
    assert "published" in made[0].output and "0.698" in made[0].output and "(reduced)" in made[0].output


def test_validation_has_its_own_lines_and_its_own_published_figures(scans):
    found = sweep_tables({"vnet": scans / "exact_validation", "unet3d": scans / "exact_test"}, scans / "parts")
    lines = {(row["method"], row["part"]): row for row in found.table if row["structure"] == ALL_STRUCTURES}
    assert lines["vnet", "validation"]["dice_published"] == 0.638
    assert lines["unet3d", "test"]["dice_published"] == 0.867
    assert not (scans / "parts" / "slices").exists()  # no labels were given


def test_the_page_holds_everything(made):
    page = (made[1] / "report.html").read_text(encoding="utf-8")
    for text in ("Hausdorff distance of every participant", "Dice and ASD along the slices", "Error on the surface"):
        assert text in page
    assert html.escape(SWEEPS_NOTES[0]) in page and "Reduced" in page
    assert page.count("data:image/png;base64,") == 1 + 1 + 4  # participants; curves of anna; two muscles of two ways
    for path in (made[1] / "hausdorff.png", made[1] / "slices" / "anna.png"):
        assert matplotlib.image.imread(path).std() > 0.05
    assert not (made[1] / "slices" / "bert.png").exists()
    assert json.loads((made[1] / "methods.json").read_text(encoding="utf-8"))["notes"] == list(SWEEPS_NOTES)


def test_surfaces_hold_their_error(made):
    folder = made[1] / "surfaces" / "anna"
    assert {path.suffix for path in folder.iterdir()} == {".ply", ".png"} and len(list(folder.iterdir())) == 8
    path = folder / "soleus__interpolate_3_slices.ply"
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert b"property float quality" in header and b"property uchar red" in header
    mesh = read_mesh(path)
    table = np.frombuffer(body, [("xyz", "<f4", 3), ("quality", "<f4"), ("colour", "u1", 3)], len(mesh.vertices))
    assert np.allclose(table["xyz"], mesh.vertices)
    assert table["quality"].max() == pytest.approx(2, abs=0.3)
    assert np.array_equal(table["colour"], error_colours(table["quality"], 5.0))


def test_profiles_leave_out_what_was_drawn():
    prediction, reference = (Volume(array, GRID) for array in (sweep(shift=2), sweep(drawn=(5,))))
    rows = [row for row in profile(prediction, reference, MUSCLES, 2) if row["structure"] == "soleus"]
    assert [row["slice"] for row in rows] == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert {round(row["dice"], 6) for row in rows} == {round(2 / 3, 6)}
    # outline of 6 x 8: 24 pixels, from columns 4..9 to 2..7. Columns 8, 9 lie 1 and 2 mm away: all 8 of column 9 by 2,
    # top and bottom of column 8 by 1; column 4 faces the inside, its 6 inner pixels 1 or 2 mm from top or bottom, or 2
    # from column 2: 1, 2, 2, 2, 2, 1; all others lie on the true outline
    asd = (8 * 2 + 2 * 1 + 1 + 2 + 2 + 2 + 2 + 1) / 24
    assert rows[0]["mean_surface_distance"] == pytest.approx(asd)


def test_profiles_of_what_only_one_has():
    empty = np.zeros(GRID.shape, np.uint8)
    rows = profile(Volume(empty, GRID), Volume(sweep(), GRID), MUSCLES, 2)
    assert {row["dice"] for row in rows} == {0.0} and all(math.isnan(row["mean_surface_distance"]) for row in rows)
    assert profile(Volume(empty, GRID), Volume(empty, GRID), MUSCLES, 2) == []


def test_equal_surfaces_have_no_error():
    box = sweep() == 1
    mesh, distances = surface_error(box, box, GRID)
    assert len(distances) == len(mesh.vertices) and distances.max() == 0
    # the same surface, moved by 2 mm: no vertex is farther from the true one than from its own image
    moved, distances = surface_error(sweep(shift=2) == 1, box, GRID)
    assert distances.max() == pytest.approx(2, abs=0.05) and distances.max() <= 2 + 1e-6
    assert np.allclose(moved.vertices - [2, 0, 0], mesh.vertices)
    with pytest.raises(ValueError, match="the mask is empty"):
        surface_error(box, np.zeros_like(box), GRID)


def test_colours_of_errors():
    colours = error_colours(np.array([0.0, 5.0, 50.0]), 5.0)
    assert colours.dtype == np.uint8 and np.array_equal(colours[1], colours[2])
    assert colours[0].sum() > colours[1].sum()  # pale to dark


@pytest.mark.parametrize(
    ("method", "protocols"), [("grow", {"every100", "3"}), ("vnet", {"start", "3"}), ("registration", set())]
)
def test_published_figures_stand_under_their_protocol_alone(scans, method, protocols):
    measured = read_measured(scans / "exact_test")
    for protocol in ("start", "every100", "share3", "3"):
        rows = sweep_table([Way(f"{method}/{protocol}", measured)])
        found = {row["structure"] for row in rows if math.isfinite(row["dice_published"])}
        assert found == ({ALL_STRUCTURES} if protocol in protocols else set())


def test_published_figures_agree_with_each_other():
    # Dice = 2 IoU / (1 + IoU) for one mask; means of subjects come near. Columns read the wrong way would not
    for part in ("validation", "test"):
        for name, row in published_sweeps(part).items():
            if {"dice", "iou"} <= set(row):
                assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]), abs=0.09), (part, name)
                assert row["iou"] <= row["dice"]
    with pytest.raises(ValueError, match="part is 'train'; figures of test and validation were published"):
        published_sweeps("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluations": {}}, "no evaluation is given; one is needed at least"),
        ({"shown": -1}, "shown is -1; a number of subjects, 0 or more, is needed"),
        ({"predictions": {"other": "exact"}}, "predictions of other have no evaluation; evaluated are vnet"),
        ({"predictions": {"vnet": "exact"}}, "predictions need the references they were compared with; give them"),
    ],
)
def test_arguments_that_make_no_table(scans, tmp_path, change, message):
    arguments = {"evaluations": {"vnet": scans / "exact_test"}} | change
    with pytest.raises(ValueError, match=message):
        sweep_tables(arguments.pop("evaluations"), tmp_path / "x", **arguments)


def test_folders_that_make_no_table(scans, tmp_path):
    evaluations = {"vnet": scans / "exact_test"}
    with pytest.raises(DataError, match="holds no metrics.json; give the folder that `tfmuscle evaluate` wrote"):
        sweep_tables({"vnet": tmp_path}, tmp_path / "x")
    with pytest.raises(DataError, match="holds the report of something else; choose a new folder"):
        sweep_tables(evaluations, scans / "exact_validation")
    for folder, message in ((tmp_path / "none", "there is no such folder"), (tmp_path, "holds no label image")):
        with pytest.raises(DataError, match=message):
            sweep_tables(evaluations, tmp_path / "y", predictions={"vnet": folder}, references=scans / "ref")
    other = LabelMap({1: "femur"})
    write_volume(tmp_path / "femur/anna.nii.gz", Volume((sweep() == 1).astype(np.uint8), GRID))
    files = {"anna": tmp_path / "femur/anna.nii.gz"}
    evaluate(files, files, other, tmp_path / "eval")
    with pytest.raises(DataError, match="its labels are .*femur.*compare evaluations of the same structures"):
        sweep_tables(evaluations | {"unet3d": tmp_path / "eval"}, tmp_path / "z")


def test_a_subject_without_labels_is_named_and_the_others_are_drawn(scans, tmp_path):
    write_volume(tmp_path / "some/bert.nii.gz", Volume(sweep(), GRID))
    found = sweep_tables(
        {"vnet": scans / "exact_test"},
        tmp_path / "out",
        predictions={"vnet": tmp_path / "some"},
        references=scans / "ref",
    )
    assert found.failures == {
        "vnet, curves of anna": "anna: not among the label files of vnet; give the folder that holds it"
    }
    assert (tmp_path / "out/slices/bert.png").exists() and not (tmp_path / "out/slices/anna.png").exists()


def test_names_on_the_command_line(scans, tmp_path):
    for name, message in (
        ("vnet", "'vnet' is not of the form METHOD"),
        ("a=b", "'a' is given twice; names are unique"),
    ):
        given = ["sweep-tables", "-i", name, "-i", name, "-o", str(tmp_path / "x")]
        result = CliRunner().invoke(tfmuscle_group, given)
        assert result.exit_code == 2 and message in result.output
