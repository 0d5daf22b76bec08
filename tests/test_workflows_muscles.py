"""`tfmuscle muscle-figures` on an evaluation of a few voxels: what is written, and what is refused."""

import csv
import html.parser
import json
import math

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.evaluation import EvaluationOptions, evaluate
from tfmuscle.io import write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows.muscles import muscle_figures

LEGS = LabelMap({1: "soleus_left", 2: "soleus_right", 3: "popliteus_left", 4: "popliteus_right", 5: "femur_left"})
GRID = Geometry((24, 10, 20), np.diag([1.0, 1.0, 2.0, 1.0]))
CONTEXT = {"dataset": "legs", "part": "test", "seed": "7", "epochs": "3", "scale": "reduced"}


def run(*words, code=0):
    result = CliRunner().invoke(tfmuscle_group, ["muscle-figures", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def leg(*, popliteus=True):
    """Two soleus of 8 x 8 x 10 voxels, two popliteus of 4 x 4 x 4, and a femur."""
    array = np.zeros(GRID.shape, np.uint8)
    array[1:9, 1:9, 1:11], array[14:22, 1:9, 1:11] = 1, 2
    array[10:13, 1:9, 1:19] = 5
    if popliteus:
        array[2:6, 2:6, 13:17], array[15:19, 2:6, 13:17] = 3, 4
    return array


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Predictions of two subjects in which each left soleus is a half too long, and no popliteus was found."""
    folder = tmp_path_factory.mktemp("scans")
    references, predictions = {}, {}
    for subject in ("anna", "bert"):
        predicted = leg(popliteus=False)
        predicted[1:9, 1:9, 11:16] = 1
        for files, name, array in ((references, "ref", leg()), (predictions, "pred", predicted)):
            (folder / name).mkdir(exist_ok=True)
            files[subject] = folder / name / f"{subject}.nii.gz"
            write_volume(files[subject], Volume(array, GRID))
    options = EvaluationOptions(context=CONTEXT, failures={"carl": "no scan"})
    evaluate(predictions, references | {"carl": folder / "ref" / "carl.nii.gz"}, LEGS, folder / "eval", options=options)
    return folder


@pytest.fixture(scope="module")
def made(scans):
    return run("-i", scans / "eval", "-p", scans / "pred", "-o", scans / "out", "--renderings", 1), scans / "out"


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.cells, self.words, self.pictures, self.links = [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.pictures += tag == "img" and values["src"].startswith("data:image/png;base64,")
        self.links += [value for key, value in attributes if key in ("src", "href") and not value.startswith("data:")]
        self.cells += [[]] if tag == "tr" else []

    def handle_data(self, data):
        self.words.append(data)
        if self.cells:
            self.cells[-1].append(data.strip())


def test_the_files(made):
    _, out = made
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "histogram_surface_distance.png",
        "histogram_volume_error.png",
        "muscles.csv",
        "muscles.json",
        "renderings/anna.png",
        "report.html",
    ]
    for path in out.rglob("*.png"):
        assert matplotlib.image.imread(path).std() > 0


def test_the_table(made):
    result, out = made
    rows = list(csv.DictReader((out / "muscles.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["structure"] for row in rows] == ["popliteus", "soleus", "femur"]
    # soleus: left 2 * 640 / (640 + 960) = 0.8, right 1
    assert float(rows[1]["dice_mean"]) == pytest.approx(0.9) and float(rows[1]["dice_sd"]) == pytest.approx(0.0)
    assert float(rows[1]["difference"]) == pytest.approx(0.9 - 0.94)
    assert (rows[0]["note"], rows[0]["published_mean"]) == ("not found in any subject", "0.88")
    assert (rows[2]["published_mean"], rows[2]["scale"], rows[2]["seed"]) == ("nan", "reduced", "7")
    content = json.loads((out / "muscles.json").read_text(encoding="utf-8"))
    assert content["context"] == CONTEXT and content["failures"] == {"carl": "no scan"}
    # |volume error| of the four soleus: 50, 0, 50, 0 %; of the four popliteus: 100 %
    assert content["errors"]["volume_difference_absolute_percent"] == {"mean": pytest.approx(62.5), "paper": 6.5}
    assert content["errors"]["mean_surface_distance"]["paper"] == 2.9
    assert content["mean"]["dice_mean"] == pytest.approx(0.45)
    assert "Not found in any subject, Dice 0: popliteus." in result.output
    assert "mean of these 2 muscles" in result.output and "(reduced)" in result.output


def test_the_page(made):
    text = (made[1] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.pictures == 3 and page.links == []
    assert ["soleus", "0.900 ± 0.000", "0.94 ± 0.019", "0.93", "-0.040", "2", "4"] in [c[:7] for c in page.cells]
    assert ["mean of these 2 muscles", "0.450", "0.910", "0.915", "-0.460"] in [cells[:5] for cells in page.cells]
    assert ["femur", "1.000 ± 0.000", "2", "2"] in [cells[:4] for cells in page.cells]
    for key, value in (*CONTEXT.items(), ("carl", "no scan")):
        assert [key, value] in [cells[:2] for cells in page.cells]
    words = " ".join(page.words)
    for said in ("Reduced", "Ni et al. 2019, J. Med. Imaging", "0 of 2 muscles are not below", "4 were not found"):
        assert said in words
    assert "mean difference of the volumes is -37.5 %" in words  # 50, 0 and twice -100


def test_again_and_without_renderings(made, scans, tmp_path):
    _, out = made
    before = (out / "muscles.csv").read_bytes()
    muscle_figures(scans / "eval", out)
    assert (out / "muscles.csv").read_bytes() == before
    assert not list((out / "renderings").iterdir())  # none is left of an earlier call
    run("-i", scans / "eval", "-o", tmp_path / "new", "-p", scans / "pred", "--renderings", 0)
    assert not (tmp_path / "new" / "renderings").exists()


def test_progress_and_missing_predictions(scans, tmp_path):
    (tmp_path / "pred").mkdir()
    for name, array in (("bert", leg()), ("anna", np.full(GRID.shape, 9, np.uint8))):
        write_volume(tmp_path / "pred" / f"{name}.nii.gz", Volume(array, GRID))
    seen = []
    made = muscle_figures(
        scans / "eval", tmp_path / "out", predictions=tmp_path / "pred", progress=lambda *step: seen.append(step)
    )
    assert seen == [(1, 2, "anna"), (2, 2, "bert")]
    assert (
        list(made.failures) == ["rendering of anna"]
        and "label ids [9] are not among" in made.failures["rendering of anna"]
    )
    assert [path.name for path in (tmp_path / "out" / "renderings").iterdir()] == ["bert.png"]
    (tmp_path / "pred" / "anna.nii.gz").unlink()
    result = run("-i", scans / "eval", "-o", tmp_path / "out", "-p", tmp_path / "pred", code=1)
    assert "Failed: rendering of anna: no label image of this name among the predictions" in result.output


def test_bones_only_and_hostile_names(tmp_path):
    name = '<script>alert("1")</script> $x$'
    row = {"subject_id": "../" + name, "structure": name, "note": "", "dice": 0.5}
    row |= {"volume_difference_absolute_percent": 1.0, "volume_difference_percent": 1.0, "mean_surface_distance": None}
    content = {"rows": [row], "label_map": {name: 1}, "context": {}, "failures": {}}
    (tmp_path / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
    made = muscle_figures(tmp_path, tmp_path / "out")
    assert made.means["n_muscles"] == 0 and math.isnan(made.means["dice_mean"])
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in text and "None of the labels is one of the paper" in text
    assert "nothing is known of their origin" in text


class TestRefused:
    def test_number_of_renderings(self, scans, tmp_path):
        with pytest.raises(ValueError, match="renderings is -1; a number of subjects, 0 or more"):
            muscle_figures(scans / "eval", tmp_path / "out", renderings=-1)

    def test_the_evaluation_is_not_written_over(self, scans, tmp_path):
        for out in (scans / "eval", scans / "pred"):
            with pytest.raises(DataError, match="is an input and would be lost"):
                muscle_figures(scans / "eval", out, predictions=scans / "pred")
        (tmp_path / "report.html").write_text("mine", encoding="utf-8")
        with pytest.raises(DataError, match="holds the report of something else"):
            muscle_figures(scans / "eval", tmp_path)
        (tmp_path / "muscles.json").write_text("{}", encoding="utf-8")
        with pytest.raises(DataError, match="holds something else"):
            muscle_figures(scans / "eval", tmp_path)

    def test_predictions(self, scans, tmp_path):
        with pytest.raises(DataError, match="there is no such folder"):
            muscle_figures(scans / "eval", tmp_path / "out", predictions=tmp_path / "none")
        write_volume(tmp_path / "pred" / "zoe.nii.gz", Volume(leg(), GRID))
        with pytest.raises(DataError, match="holds no label image of the evaluated subjects anna, bert; give"):
            muscle_figures(scans / "eval", tmp_path / "out", predictions=tmp_path / "pred")
        (tmp_path / "pred" / "predictions.json").write_text('{"orientation": null}', encoding="utf-8")
        with pytest.raises(DataError, match="these scans lie in no patient and have no front"):
            muscle_figures(scans / "eval", tmp_path / "out", predictions=tmp_path / "pred")

    def test_no_evaluation_in_one_line(self, tmp_path):
        result = run("-i", tmp_path, "-o", tmp_path / "out", code=1)
        assert result.output.startswith("Error: ") and "give the folder that `tfmuscle evaluate` wrote" in result.output
        assert not (tmp_path / "out").exists()
