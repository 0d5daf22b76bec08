"""Cubes of a few voxels, whose figures follow from arithmetic in the comments; files are written by nibabel."""

import csv
import json
import math

import nibabel
import numpy as np
import pytest

from tfmuscle.evaluation import ALL_STRUCTURES, EvaluationOptions, evaluate, writing
from tfmuscle.labels import LabelMap
from tfmuscle.report import Section

LEG = LabelMap({1: "femur", 2: "tibia"}, ignore=255)
SPACING = (1.0, 1.0, 2.0)


def scene(shift=0, tibia=True):
    """A femur of 4x4x4 voxels (128 mm³), shifted along the third axis, and a tibia of 2x2x2 (16 mm³)."""
    array = np.zeros((12, 10, 12), dtype=np.uint8)
    array[1:5, 1:5, 3 + shift : 7 + shift] = 1
    if tibia:
        array[7:9, 7:9, 4:6] = 2
    return array


def write(folder, name, array, affine=None):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.nii.gz"
    image = nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0]) if affine is None else affine)
    nibabel.save(image, path)
    return path


@pytest.fixture
def files(tmp_path):
    """Writes label images into folders of `tmp_path`: files(folder, name=array) -> name -> path."""

    def make(folder, **arrays):
        return {name: write(tmp_path / folder, name, array) for name, array in arrays.items()}

    return make


def lines(summary, structure, metric="dice"):
    (line,) = [row for row in summary if (row["structure"], row["metric"]) == (structure, metric)]
    return line


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class TestFigures:
    def test_means_are_over_subjects(self, files, tmp_path):
        # a: perfect. b: femur shifted by one of its four voxels (2 mm): Dice 3/4; tibia missed: Dice 0, no surface.
        predictions = files("predictions", a=scene(), b=scene(1, tibia=False))
        references = files("references", a=scene(), b=scene())
        result = evaluate(predictions, references, LEG, tmp_path / "out")
        assert not result.failures
        femur, tibia, every = (lines(result.summary, name) for name in ("femur", "tibia", ALL_STRUCTURES))
        assert femur["mean"] == pytest.approx((1 + 0.75) / 2)
        assert femur["sd"] == pytest.approx(0.25 / math.sqrt(2))  # n - 1
        assert (tibia["mean"], tibia["n"]) == (pytest.approx(0.5), 2)
        assert every["mean"] == pytest.approx((1 + 0.375) / 2)  # within each subject first
        assert every["sd"] == pytest.approx(0.625 / math.sqrt(2))
        assert result.mean_dice == every["mean"]
        hausdorff = [lines(result.summary, name, "hausdorff") for name in ("femur", "tibia")]
        assert [(line["mean"], line["n"], line["n_undefined"]) for line in hausdorff] == [(1.0, 2, 0), (0.0, 1, 1)]
        assert lines(result.summary, "femur", "reference_ml")["mean"] == pytest.approx(0.128)
        assert [row["note"] for row in result.rows] == ["", "", "", "prediction empty"]

    def test_tables_hold_the_same_figures(self, files, tmp_path):
        predictions = files("predictions", a=scene(1, tibia=False))
        context = {"data": "cubes", "seed": "3"}
        options = EvaluationOptions(context=context)
        result = evaluate(predictions, files("references", a=scene()), LEG, tmp_path / "out", options=options)
        table = read_csv(result.out / "metrics.csv")
        assert [(row["subject_id"], row["structure"]) for row in table] == [("a", "femur"), ("a", "tibia")]
        assert float(table[0]["dice"]) == 0.75
        assert table[1]["assd"] == "nan"
        summary = read_csv(result.out / "summary.csv")
        assert {row["structure"] for row in summary} == {"femur", "tibia", ALL_STRUCTURES}
        assert {(row["data"], row["seed"]) for row in summary} == {("cubes", "3")}
        content = json.loads((result.out / "metrics.json").read_text(encoding="utf-8"))
        assert content["context"] == context
        assert content["label_map"] == LEG.to_dict()
        assert content["files"] == {"a": ["references/a.nii.gz", "predictions/a.nii.gz"]}
        assert content["rows"][0]["dice"] == 0.75
        assert content["rows"][1]["assd"] is None
        assert content["metrics"]["assd"]["unit"] == "mm"
        assert "numpy" in content["made_with"]["versions"]
        assert str(tmp_path) not in (result.out / "metrics.json").read_text(encoding="utf-8")
        assert json.loads((result.out / "summary.json").read_text(encoding="utf-8"))["summary"][0]["mean"] == 0.75

    def test_text_table(self, files, tmp_path):
        predictions = files("predictions", a=scene(1), b=scene())
        result = evaluate(predictions, files("references", a=scene(), b=scene()), LEG, tmp_path / "out")
        head, femur, *_ = result.table().splitlines()
        assert head.startswith("structure")
        assert "0.875 ± 0.177" in femur  # 0.25 / sqrt 2
        assert head.endswith("subjects  failed")
        assert femur.split()[-2:] == ["2", "0"]

    def test_ignored_voxels_count_for_nothing(self, files, tmp_path):
        reference = scene()
        reference[:, :, 7] = 255  # where the shifted femur leaves the true one
        predictions = files("predictions", a=scene(1))
        result = evaluate(predictions, files("references", a=reference), LEG, tmp_path / "out")
        # Three of the four reference slices are found, nothing wrong: 2 * 3 / (3 + 4).
        assert result.rows[0]["dice"] == pytest.approx(6 / 7)
        assert result.rows[0]["precision"] == 1.0

    def test_labels_may_be_stored_as_whole_floats(self, files, tmp_path):
        predictions = files("predictions", a=scene().astype(np.float32))
        assert evaluate(predictions, files("references", a=scene()), LEG, tmp_path / "out").mean_dice == 1.0

    def test_tolerance(self, files, tmp_path):
        predictions, references = files("predictions", a=scene(1)), files("references", a=scene())
        values = []
        for tolerance in (1.9, 2.0):  # the shift is 2 mm
            options = EvaluationOptions(tolerance_mm=tolerance)
            result = evaluate(predictions, references, LEG, tmp_path / "out", options=options)
            values.append(result.rows[0]["surface_dice"])
        assert values[0] < values[1] == 1.0

    def test_progress(self, files, tmp_path):
        calls = []
        predictions = files("predictions", a=scene())
        references = files("references", b=scene(), a=scene())
        evaluate(predictions, references, LEG, tmp_path / "out", progress=lambda *call: calls.append(call))
        assert calls == [(1, 2, "a"), (2, 2, "b")]


class TestFailures:
    def test_one_bad_subject_is_listed_and_the_others_go_on(self, files, tmp_path):
        predictions = files("predictions", good=scene(), fraction=scene() * 0.5, unknown=scene() * 3)
        broken = tmp_path / "predictions" / "broken.nii.gz"
        broken.write_bytes(predictions["good"].read_bytes()[:100])
        predictions["broken"] = broken
        names = ("good", "missing", "fraction", "unknown", "broken")
        references = files("references", **{name: scene() for name in names})
        result = evaluate(predictions, references, LEG, tmp_path / "out")
        assert {row["subject_id"] for row in result.rows} == {"good"}
        assert set(result.failures) == set(names) - {"good"}
        for name, words in {
            "missing": "has no prediction; predict its scan",
            "fraction": "labels must be whole numbers",
            "unknown": r"label ids [3, 6] are not among 0 background, 1 femur, 2 tibia; name or remove them",
            "broken": "broken.nii.gz",
        }.items():
            assert words in result.failures[name]
            assert "\n" not in result.failures[name]
        assert lines(result.summary, "femur")["n"] == 1
        assert lines(result.summary, "femur")["n_failed"] == 4
        page = (result.out / "report.html").read_text(encoding="utf-8")
        notes = {row["subject_id"]: row["note"] for row in read_csv(result.out / "metrics.csv")}
        for name in result.failures:
            assert notes[name].startswith("failed: ")
            assert name in page
        assert "Failed: 4" in page

    @pytest.mark.parametrize(
        ("array", "affine", "words"),
        [
            (scene()[1:], None, r"shape (11, 10, 12) against (12, 10, 12)"),
            (scene(), np.diag([1.0, 1.0, 3.0, 1.0]), "spacing 1 x 1 x 3 mm against 1 x 1 x 2 mm"),
            (scene(), np.diag([-1.0, 1.0, 2.0, 1.0]), "orientation LAS against RAS"),
            (scene(), np.diag([1.0, 1.0, 2.0, 1.0]) + np.eye(4, k=3) * 5, "first voxels 5 mm apart, or turned"),
        ],
    )
    def test_another_grid_is_refused_naming_both(self, files, tmp_path, array, affine, words):
        path = write(tmp_path / "predictions", "a", array, affine)
        result = evaluate({"a": path}, files("references", a=scene()), LEG, tmp_path / "out")
        reason = result.failures["a"]
        assert words in reason
        assert str(path) in reason and str(tmp_path / "references" / "a.nii.gz") in reason
        assert "resample" in reason
        assert not result.rows
        assert math.isnan(result.mean_dice)
        assert (result.out / "report.html").exists() and (result.out / "boxplot.png").exists()

    def test_subjects_that_could_not_be_predicted_are_counted(self, files, tmp_path):
        options = EvaluationOptions(failures={"lost": "lost.nii.gz: cut off; copy it again"})
        predictions = files("predictions", a=scene())
        result = evaluate(predictions, files("references", a=scene()), LEG, tmp_path / "out", options=options)
        assert result.failures == {"lost": "lost.nii.gz: cut off; copy it again"}
        assert lines(result.summary, "femur")["n_failed"] == 1

    def test_an_empty_prediction_is_a_result_not_a_failure(self, files, tmp_path):
        predictions = files("predictions", a=np.zeros_like(scene()))
        result = evaluate(predictions, files("references", a=scene()), LEG, tmp_path / "out")
        assert not result.failures
        assert result.mean_dice == 0.0

    def test_a_prediction_without_reference_is_mentioned(self, files, tmp_path):
        predictions = files("predictions", a=scene(), stranger=scene())
        result = evaluate(predictions, files("references", a=scene()), LEG, tmp_path / "out")
        assert result.unused == ("stranger",)
        assert not result.failures
        assert "stranger" in (result.out / "report.html").read_text(encoding="utf-8")

    def test_nothing_to_do(self, files, tmp_path):
        with pytest.raises(ValueError, match="needs one reference and one structure"):
            evaluate({}, {}, LEG, tmp_path / "out")
        with pytest.raises(ValueError, match="needs one reference and one structure"):
            evaluate({}, files("references", a=scene()), LabelMap({}), tmp_path / "out")

    def test_a_report_is_replaced_and_leaves_nothing_half_written(self, files, tmp_path):
        references = files("references", a=scene(), b=scene())
        evaluate(references, references, LEG, tmp_path / "out")
        only = {"a": references["a"]}
        evaluate(only, only, LEG, tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == ["a.png"]
        assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".tmp-")]


class TestSecondObserver:
    def test_structures_within_human_variability_are_marked(self, files, tmp_path):
        # Femur: the method is off by one slice (3/4), the observer by two (1/2). Tibia: method 0, observer 1.
        predictions = files("predictions", a=scene(1, tibia=False), b=scene(1, tibia=False))
        references = files("references", a=scene(), b=scene())
        options = EvaluationOptions(observer2=files("observer2", a=scene(2)))
        result = evaluate(predictions, references, LEG, tmp_path / "out", options=options)
        assert not result.failures  # a subject drawn once is no failure
        femur, tibia = lines(result.summary, "femur"), lines(result.summary, "tibia")
        assert (femur["observers_mean"], femur["n_observers"], femur["n"]) == (pytest.approx(0.5), 1, 2)
        assert (femur["within_human_variability"], tibia["within_human_variability"]) == ("yes", "no")
        assert lines(result.summary, ALL_STRUCTURES)["observers_mean"] == pytest.approx(0.75)
        assert lines(result.summary, "femur", "assd")["within_human_variability"] == ""
        assert [row["observer_dice"] for row in result.rows] == pytest.approx(
            [0.5, 1.0, math.nan, math.nan], nan_ok=True
        )
        head, first, second, _ = result.table().splitlines()
        assert "within human variability" in head and " yes " in first and " no " in second
        assert "within human variability" in (result.out / "report.html").read_text(encoding="utf-8")

    def test_equal_is_within(self, files, tmp_path):
        references = files("references", a=scene())
        options = EvaluationOptions(observer2=references)
        result = evaluate(references, references, LEG, tmp_path / "out", options=options)
        assert lines(result.summary, "femur")["within_human_variability"] == "yes"

    def test_what_either_observer_ignored_is_left_out(self, files, tmp_path):
        other = scene(1)
        other[:, :, 3] = 255  # the slice that the second observer lacks
        other[:, :, 7] = 255  # and the one he has too many
        references = files("references", a=scene())
        options = EvaluationOptions(observer2=files("observer2", a=other))
        result = evaluate(references, references, LEG, tmp_path / "out", options=options)
        assert lines(result.summary, "femur")["observers_mean"] == 1.0

    def test_bad_files_are_listed(self, files, tmp_path):
        references = files("references", a=scene())
        options = EvaluationOptions(observer2=files("observer2", a=scene()[1:]))
        result = evaluate(references, references, LEG, tmp_path / "out", options=options)
        assert "not on the grid" in result.failures["observer2 of a"]
        assert result.mean_dice == 1.0
        assert lines(result.summary, "femur")["within_human_variability"] == ""
        assert lines(result.summary, "femur")["n_failed"] == 0  # the subject itself was measured
        options = EvaluationOptions(observer2=files("observer2", z=scene()))
        result = evaluate(references, references, LEG, tmp_path / "out", options=options)
        assert "named like a reference" in result.failures["observer2"]


class TestPage:
    def test_context_sections_and_training(self, files, tmp_path):
        references = files("references", a=scene())
        options = EvaluationOptions(
            context={"data": "cubes <b>", "hardware": "2 cores"},
            history={"loss": [2.0, 1.0]},
            sections=(Section("Extra part", "Some words"),),
            images=files("images", a=np.random.default_rng(0).random(scene().shape).astype(np.float32)),
        )
        result = evaluate(references, references, LEG, tmp_path / "out", options=options)
        page = (result.out / "report.html").read_text(encoding="utf-8")
        for words in ("cubes &lt;b&gt;", "2 cores", "Extra part", "Some words", "<h2>Training</h2>", "tensorflow"):
            assert words in page
        assert page.count("data:image/png;base64,") == 3  # boxes, curves, one overlay
        assert page.index("cubes &lt;b&gt;") < page.index("Results")
        assert "reduced" not in page.lower()
        assert "http" not in page

    def test_reduced_is_said_everywhere(self, files, tmp_path):
        references = files("references", a=scene())
        options = EvaluationOptions(context={"scale": "reduced"})
        result = evaluate(references, references, LEG, tmp_path / "out", options=options)
        page = (result.out / "report.html").read_text(encoding="utf-8")
        assert "<h1>tfmuscle: evaluation (reduced)</h1>" in page
        assert page.index("<h2>Reduced</h2>") < page.index("Where these figures come from")
        for name in ("summary.csv", "metrics.csv"):
            assert {row["scale"] for row in read_csv(result.out / name)} == {"reduced"}
        assert result.table().endswith("\nreduced: the recipe was cut down")

    def test_overlays_are_all_written_and_a_selection_is_shown(self, files, tmp_path, monkeypatch):
        monkeypatch.setattr(writing, "OVERLAYS_ON_PAGE", 3)
        shifts = {"a": 1, "b": 4, "c": 0, "d": 2, "e": 3}  # Dice falls with the shift: b, e, d, a, c
        predictions = files("predictions", **{name: scene(shift) for name, shift in shifts.items()})
        references = files("references", **{name: scene() for name in shifts})
        result = evaluate(predictions, references, LEG, tmp_path / "out")
        assert len(list((result.out / "overlays").glob("*.png"))) == 5
        page = (result.out / "report.html").read_text(encoding="utf-8")
        captions = [part.split("</figcaption>")[0] for part in page.split("<figcaption>")[1:]]
        assert captions[1:] == ["b", "d", "c"]  # the worst, the middle and the best; the box plot comes first

    def test_hostile_subject_ids(self, files, tmp_path):
        (path,) = files("references", a=scene()).values()
        ids = {"../../x": path, "<img src=x>": path, "$a$ b": path, "$a$_b": path}
        result = evaluate(ids, ids, LEG, tmp_path / "out")
        assert len(list((result.out / "overlays").iterdir())) == 4
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "references"]
        assert "<img src=x>" not in (result.out / "report.html").read_text(encoding="utf-8")

    def test_an_image_that_does_not_fit_is_listed_and_the_labels_are_drawn(self, files, tmp_path):
        references = files("references", a=scene(), b=scene())
        images = files("images", a=np.zeros((3, 3, 3), np.float32), b=np.zeros((*scene().shape, 2), np.int16))
        result = evaluate(references, references, LEG, tmp_path / "out", options=EvaluationOptions(images=images))
        assert set(result.failures) == {"image of a"}  # of several channels the first is shown
        assert "not on the grid" in result.failures["image of a"]
        assert (result.out / "overlays" / "a.png").exists()
        assert result.mean_dice == 1.0


def test_real_labels_against_themselves_and_shifted(data_dir, tmp_path):
    folder = data_dir / "hippocampus" / "labelsTr"
    references = {path.name.removesuffix(".nii.gz"): path for path in sorted(folder.glob("[!.]*.nii.gz"))[:2]}
    predictions = {}
    for name, path in references.items():
        image = nibabel.load(path)
        shifted = np.roll(np.asanyarray(image.dataobj).astype(np.uint8), 1, axis=1)
        predictions[name] = write(tmp_path / "predictions", name, shifted, image.affine)
    label_map = LabelMap({1: "anterior", 2: "posterior"})
    images = {name: data_dir / "hippocampus" / "imagesTr" / path.name for name, path in references.items()}
    options = EvaluationOptions(images=images, observer2=references)
    result = evaluate(predictions, references, label_map, tmp_path / "out", options=options)
    assert not result.failures
    for row in result.rows:
        assert 0.7 < row["dice"] < 1.0
        assert row["hausdorff"] == pytest.approx(1.0)  # one voxel of 1 mm
        assert row["volume_error_ml"] == 0.0
        assert row["observer_dice"] == 1.0
