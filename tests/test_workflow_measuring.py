"""`tfmuscle measure`: files in, tables and a page out, what is refused and how it is said."""

import csv
import html.parser
import json
import re

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from test_measuring_doubts import LEGS, both_legs

from tfmuscle.cli import tfmuscle_group
from tfmuscle.io import write_volume
from tfmuscle.io.label_tables import plain_name
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows import measuring
from tfmuscle.workflows.measuring_subject import measure_one

HOSTILE = "<img src=x onerror=alert(1)>&"


def run(*words, code=0):
    result = CliRunner().invoke(tfmuscle_group, ["measure", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def table(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def write_legs(folder, name="legs", volume=None, names=LEGS):
    write_volume(folder / f"{name}.nii.gz", volume or both_legs())
    if names is not None:
        (folder / "dataset.json").write_text(json.dumps({"labels": names.to_dict()}))
    return folder / f"{name}.nii.gz"


def write_image(path, values):
    grid = both_legs().geometry
    write_volume(path, Volume(np.broadcast_to(np.asarray(values, np.float32), grid.shape).copy(), grid))
    return path


@pytest.fixture
def legs(tmp_path):
    return write_legs(tmp_path)


@pytest.fixture
def dixon(tmp_path):
    """30 % fat, but 10 % in the left half."""
    water, fat = np.full((40, 12, 20), 70.0), np.full((40, 12, 20), 30.0)
    water[:20], fat[:20] = 180, 20
    return write_image(tmp_path / "water.nii", water), write_image(tmp_path / "fat.nii", fat)


@pytest.fixture
def no_pictures(monkeypatch):
    """For tests that do not look at the page of a subject: drawing it takes longer than all else."""
    monkeypatch.setattr(measuring, "page", lambda measures, options, files: "<!DOCTYPE html>")


class Page(html.parser.HTMLParser):
    """Tags and attributes of a page, and whatever would be loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for key, value in attrs if key in ("src", "href", "data", "srcset", "onerror", "onload")]

    def handle_data(self, data):
        self.text += data


def test_tables_by_hand(legs, dixon, tmp_path):
    result = run("-i", legs, "-r", *dixon, "-o", tmp_path / "out")
    rows = {row["structure"]: row for row in table(tmp_path / "out" / "structures.csv")}
    left = rows["soleus_left"]  # 6 x 6 x 6 voxels of 1 mm
    assert (left["subject"], left["side"], left["id"]) == ("legs", "left", "1")
    assert float(left["volume_ml"]) == pytest.approx(0.216)
    assert float(left["inner_ml"]) == pytest.approx(0.080 - 0.016 + 0.0)  # 4 x 4 x 4
    assert float(left["outer_ml"]) == pytest.approx(0.216 + 0.216)
    assert float(left["length_mm"]) == pytest.approx(6.0) and float(left["max_area_cm2"]) == pytest.approx(0.36)
    assert float(left["ff_mean"]) == pytest.approx(10.0) and float(left["ff_of_sums"]) == pytest.approx(10.0)
    assert float(rows["psoas_right"]["ff_mean"]) == pytest.approx(30.0)
    assert float(left["water_p50"]) == pytest.approx(180) and float(left["fat_mean"]) == pytest.approx(20)
    (soleus, psoas) = table(tmp_path / "out" / "asymmetry.csv")
    assert float(soleus["volume_ml_asymmetry"]) == 0 and float(psoas["ff_mean_asymmetry"]) == pytest.approx(-20)
    areas = [row for row in table(tmp_path / "out" / "areas.csv") if row["structure"] == "psoas_left"]
    assert [int(row["slice"]) for row in areas] == [10, 11, 12, 13, 14, 15]
    assert float(areas[0]["length_percent"]) == pytest.approx(100 * 0.5 / 6, rel=1e-4)
    assert float(areas[0]["limb_percent"]) == pytest.approx(100 * (10 - 1.5) / 14, rel=1e-4)  # labels from 1.5 to 15.5
    percent = table(tmp_path / "out" / "areas_by_limb_percent.csv")
    assert [row["limb_percent"] for row in percent] == [str(n) for n in range(101)]
    assert float(percent[75]["psoas_left"]) == pytest.approx(0.36) and float(percent[25]["psoas_left"]) == 0
    assert "soleus_left   0.22       6.00       0.36          10.00    10.00" in result.output
    assert "1 subject(s) measured, 0 flags" in result.output
    assert "are the two" not in result.output


@pytest.mark.usefixtures("no_pictures")
def test_json_holds_everything_and_where_it_comes_from(legs, dixon, tmp_path):
    run("-i", legs, "-r", *dixon, "-o", tmp_path / "out", "--landmark", "psoas")
    about = json.loads((tmp_path / "out" / "measures.json").read_text(encoding="utf-8"))
    assert about["made_by"] == "tfmuscle measure" and about["grid"]["orientation"] == "RAS"
    assert about["label_map"] == LEGS.to_dict()
    assert about["fingerprint"]["settings"] == {
        "axis": "slices", "landmark": "psoas", "names": "", "split_sides": False,
    }  # fmt: skip
    assert {key: value["file"] for key, value in about["fingerprint"]["files"].items()} == {
        "labels": "legs.nii.gz", "water": "water.nii", "fat": "fat.nii",
    }  # fmt: skip
    assert about["limb_axis"] == {"left": [0, 0, 1], "right": [0, 0, 1]}
    assert about["areas"]["psoas_left"]["area_cm2"] == pytest.approx([0.36] * 6)
    soleus = about["structures"][0]
    assert soleus["max_area_limb_percent"] == pytest.approx(100 * (2 - 9.5) / 6)  # below the psoas, which is 0 to 100 %
    assert soleus["ff_floor"] is None
    assert str(tmp_path) not in json.dumps(about)


class TestPage:
    def test_it_loads_nothing_and_runs_nothing(self, legs, dixon, tmp_path):
        run("-i", legs, "-r", *dixon, "-o", tmp_path / "out")
        text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        page = Page(text)
        assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
        assert page.loaded and all(value.startswith("data:image/png;base64,") for value in page.loaded)
        assert "url(" not in text and "@import" not in text
        assert str(tmp_path) not in text
        assert "@media print" in text
        for heading in (
            "Look here",
            "Size",
            "Fat fraction",
            "Intensities",
            "Left against right",
            "Area along the limb",
        ):
            assert heading in page.text
        assert page.tags.count("img") == 3  # curves, slices, from outside

    def test_flags_stand_first_with_their_slices(self, tmp_path):
        volume = both_legs()
        volume.array[4:6, 3:5, 18:20] = 3
        other = write_legs(tmp_path / "other", "second")
        run("-i", write_legs(tmp_path, volume=volume), "--other", other, "-o", tmp_path / "out")
        page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
        assert "2 flags: 1 pieces, 1 cut" in page.text and "k = 18" in page.text
        assert page.tags.count("img") == 4
        # 216 of 224 voxels are shared: 432 / 440
        assert "Beside other labellings" in page.text and "0.982" in page.text and "0.22 to 0.22" in page.text
        flags = table(tmp_path / "out" / "flags.csv")
        assert [(row["structure"], row["kind"], row["slices"]) for row in flags] == [
            ("psoas_left", "pieces", "k = 18"), ("psoas_left", "cut", "k = 19"),
        ]  # fmt: skip

    def test_hostile_names_are_text(self, tmp_path):
        folder = tmp_path / "labels"
        write_legs(folder, HOSTILE)
        (folder / f"{HOSTILE}2.nii.gz").write_bytes(b"no image")
        result = run("-i", folder, "-o", tmp_path / "out", code=1)
        assert f"Failed: {HOSTILE}2" in result.output
        for path in (tmp_path / "out" / "report.html", tmp_path / "out" / "subjects" / HOSTILE / "report.html"):
            text = path.read_text(encoding="utf-8")
            assert HOSTILE not in text and "&lt;img src=x onerror=alert(1)&gt;&amp;" in text
            assert all(value.startswith("data:") for value in Page(text).loaded)


@pytest.mark.usefixtures("no_pictures")
class TestImages:
    def test_fat_fraction_in_percent(self, legs, tmp_path):
        ff = write_image(tmp_path / "ff.nii", np.linspace(0, 76, 20))  # percent, 4 a slice; none in slice 0
        run("-i", legs, "--fat-fraction", ff, "-o", tmp_path / "out")
        rows = table(tmp_path / "out" / "structures.csv")
        assert float(rows[0]["ff_mean"]) == pytest.approx(4 * 4.5, rel=1e-5)  # slices 2 to 7
        assert rows[0]["ff_of_sums"] == ""

    def test_fat_fraction_as_shares(self, legs, tmp_path):
        ff = write_image(tmp_path / "ff.nii", 0.25)
        result = run("-i", legs, "--fat-fraction", ff, "-o", tmp_path / "out")
        assert float(table(tmp_path / "out" / "structures.csv")[0]["ff_mean"]) == pytest.approx(25)
        assert "legs: the fat fraction was taken as shares of 1" in result.output

    def test_exactly_zero_is_no_signal_in_a_float_file(self, legs, tmp_path):
        values = np.full((40, 12, 20), 40.0)
        values[:, :, 2:5] = 0
        write_image(tmp_path / "ff.nii", values)
        run("-i", legs, "--fat-fraction", tmp_path / "ff.nii", "-o", tmp_path / "out")
        row = table(tmp_path / "out" / "structures.csv")[0]
        assert (float(row["ff_mean"]), float(row["ff_with_signal_percent"])) == (40, 50)

    def test_scan_is_measured_and_drawn(self, legs, tmp_path):
        scan = write_image(tmp_path / "scan.nii", np.arange(20.0))
        run("-i", legs, "--scan", scan, "-o", tmp_path / "out")
        assert float(table(tmp_path / "out" / "structures.csv")[0]["image_mean"]) == pytest.approx(4.5)

    def test_exchanged_water_and_fat_are_told(self, tmp_path):
        grid = Geometry((60, 60, 12), np.diag([2.0, 2.0, 5.0, 1.0]))
        x, y = np.indices((60, 60)) * 2.0 - 59
        radius = np.broadcast_to(np.hypot(x, y)[..., None], grid.shape)
        water = np.where(radius < 50, 10.0, 0.0) + np.where(radius < 40, 80.0, 0.0)
        fat = np.where(radius < 50, 90.0, 0.0) - np.where(radius < 40, 80.0, 0.0)
        for name, image in (("water", water), ("fat", fat)):
            write_volume(tmp_path / f"{name}.nii", Volume(image.astype(np.float32), grid))
        write_volume(tmp_path / "labels.nii", Volume((radius < 30).astype(np.uint8), grid))
        images = (tmp_path / "water.nii", tmp_path / "fat.nii")
        assert "are the two" not in run("-i", tmp_path / "labels.nii", "-r", *images, "-o", tmp_path / "a").output
        result = run("-i", tmp_path / "labels.nii", "-r", *images[::-1], "-o", tmp_path / "b")
        assert "the water image looks like the fat image" in result.output and "are the two exchanged?" in result.output


@pytest.mark.usefixtures("no_pictures")
class TestNames:
    def test_ids_without_names(self, tmp_path):
        result = run("-i", write_legs(tmp_path / "alone", names=None), "-o", tmp_path / "out")
        assert [row["structure"] for row in table(tmp_path / "out" / "structures.csv")] == [
            "label_1", "label_2", "label_3", "label_4",
        ]  # fmt: skip
        assert "flags" in result.output

    def test_a_table_that_lacks_some(self, legs, tmp_path):
        (tmp_path / "few.json").write_text(json.dumps({"soleus_left": 1}))
        result = run("-i", legs, "--names", tmp_path / "few.json", "-o", tmp_path / "out")
        assert "legs: ids 2, 3, 4 have no name in the table of names" in result.output
        assert table(tmp_path / "out" / "structures.csv")[1]["structure"] == "label_2"

    def test_a_list_of_another_program(self, legs, tmp_path):
        run("-i", legs, "--names", "musclemap_leg", "-o", tmp_path / "out")
        names = [row["structure"] for row in table(tmp_path / "out" / "structures.csv")]
        assert names[0] == "anterior_compartment_left"

    def test_second_opinion(self, legs, tmp_path):
        volume = both_legs()
        volume.array[4:10, 3:9, 2:6] = 0
        other = write_legs(tmp_path / "other", "second", volume)
        result = run("-i", legs, "--other", other, "-o", tmp_path / "out")
        assert "Look at soleus_left, disagreement: Dice 0.50 with second.nii.gz" in result.output
        rows = table(tmp_path / "out" / "agreement.csv")
        assert [row["structure"] for row in rows] == list(LEGS.structures)
        first = rows[0]  # 216 voxels here, 72 of them there
        assert [float(first[key]) for key in ("volume_ml", "volume_ml second.nii.gz")] == pytest.approx([0.216, 0.072])
        assert float(first["dice second.nii.gz"]) == float(first["dice_mean"]) == pytest.approx(0.5)
        assert [float(first[f"volume_ml_{end}"]) for end in ("least", "most")] == pytest.approx([0.072, 0.216])
        assert float(rows[1]["dice_mean"]) == 1

    def test_folds_whose_files_are_called_alike(self, legs, tmp_path):
        folds = [write_legs(tmp_path / f"fold_{n}", "legs") for n in range(3)]
        run("-i", legs, *(word for fold in folds for word in ("--other", fold)), "-o", tmp_path / "out")
        (first, *_) = table(tmp_path / "out" / "agreement.csv")
        assert [key for key in first if key.startswith("dice ")] == [f"dice fold_{n}/legs.nii.gz" for n in range(3)]


@pytest.mark.usefixtures("no_pictures")
class TestCohort:
    @pytest.fixture
    def folder(self, tmp_path):
        for number in range(6):
            write_legs(tmp_path / "labels", f"p{number}")
        return tmp_path / "labels"

    @pytest.fixture
    def many(self, tmp_path):
        """Eleven people, of whom one has a muscle that is deeper by two thirds."""
        for number in range(11):
            volume = both_legs()
            if number == 5:
                volume.array[4:10, 1:11, 2:8] = 1
            write_legs(tmp_path / "labels", f"p{number:02d}", volume)
        return tmp_path / "labels"

    def test_a_table_of_all_and_who_is_unlike_the_others(self, many, tmp_path):
        result = run("-i", many, "-o", tmp_path / "out")
        rows = table(tmp_path / "out" / "cohort.csv")
        assert [row["subject"] for row in rows[::4]] == [f"p{n:02d}" for n in range(11)]
        about = json.loads((tmp_path / "out" / "cohort.json").read_text(encoding="utf-8"))
        assert about["finished"] and about["failures"] == {}
        assert {(row["subject"], row["structure"]) for row in about["unusual"]} == {("p05", "soleus_left")}
        page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
        assert "11 subjects measured" in page.text and "Unlike the others" in page.text
        assert "0.4 ± 0.1" in page.text  # largest area: ten of 0.36 cm², one of 0.60
        assert "Nothing was found to doubt" in page.text
        assert "11 subject(s) measured" in result.output

    def test_its_table_is_a_population(self, many, tmp_path):
        folder = many
        run("-i", folder, "-o", tmp_path / "out")
        population = tmp_path / "out" / "cohort.csv"
        result = run("-i", folder / "p05.nii.gz", "--population", population, "-o", tmp_path / "one")
        assert "Look at soleus_left, population: volume 0.36, others 0.216" in result.output
        assert "0 flags" in run("-i", folder / "p00.nii.gz", "--population", population, "-o", tmp_path / "two").output

    def test_a_failed_subject_never_hides(self, folder, tmp_path):
        (folder / "p3.nii.gz").write_bytes(b"nothing")
        write_volume(folder / "p4.nii.gz", Volume(np.zeros((3, 3, 3), np.uint8), Geometry((3, 3, 3), np.eye(4))))
        result = run("-i", folder, "-o", tmp_path / "out", code=1)
        assert "Failed: p3: " in result.output and "Failed: p4: " in result.output
        assert "nothing is labelled in it; give labels of at least one structure" in result.output
        assert result.output.rstrip().endswith("2 failed; the others are done.")
        text = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
        assert "2 subjects could not be measured" in text and "p4.nii.gz: nothing is labelled" in text
        assert str(tmp_path) not in text
        assert {row["subject"] for row in table(tmp_path / "out" / "cohort.csv")} == {"p0", "p1", "p2", "p5"}

    def test_nobody_could_be_measured(self, tmp_path):
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.nii.gz").write_bytes(b"nothing")
        result = run("-i", tmp_path / "labels", "-o", tmp_path / "out", code=1)
        assert "0 subject(s) measured" in result.output and "Failed: a: " in result.output

    def test_what_is_done_is_kept_and_what_changed_is_measured_again(self, folder, tmp_path, monkeypatch):
        done = []
        measure_one = measuring.measure_one

        def counted(path, *rest, **more):
            done.append(path.name)
            if path.name == "p2.nii.gz" and len(done) == 3:
                raise KeyboardInterrupt
            return measure_one(path, *rest, **more)

        monkeypatch.setattr(measuring, "measure_one", counted)
        result = run("-i", folder, "-o", tmp_path / "out", code=130)
        assert "Interrupted; what is finished is kept" in result.output
        result = run("-i", folder, "-o", tmp_path / "out")
        assert done == [f"p{n}.nii.gz" for n in (0, 1, 2, 2, 3, 4, 5)]
        assert "6 subject(s) measured, 2 of them before" in result.output
        volume = both_legs()
        volume.array[4, 3, 2] = 0
        write_legs(folder, "p4", volume)
        run("-i", folder, "-o", tmp_path / "out")
        assert done[7:] == ["p4.nii.gz"]
        run("-i", folder, "-o", tmp_path / "out", "--axis", "patient")
        assert len(done) == 8 + 6

    def test_images_by_folder_and_by_pattern(self, folder, tmp_path):
        for number in range(6):
            write_image(tmp_path / "scans" / f"p{number}_0000.nii.gz", 90.0)
            write_image(tmp_path / "scans" / f"p{number}_0001.nii.gz", 10.0)
        run("-i", folder, "-r", tmp_path / "scans", tmp_path / "scans" / "{id}_0001.nii.gz", "-o", tmp_path / "out")
        assert {row["ff_mean"] for row in table(tmp_path / "out" / "cohort.csv")} == {"10"}
        (tmp_path / "scans" / "p1_0001.nii.gz").unlink()
        (tmp_path / "scans" / "p2_0000.nii.gz").unlink()
        images = (tmp_path / "scans", tmp_path / "scans" / "{id}_0001.nii.gz")
        result = run("-i", folder, "-r", *images, "-o", tmp_path / "again", code=1)
        assert re.search(r"Failed: p1: .*p1_0001.nii.gz: there is no such file", result.output)
        assert "holds no image called p2 or p2_0000; check the names, or use {id}" in result.output

    def test_no_label_image(self, tmp_path):
        (tmp_path / "labels").mkdir()
        result = run("-i", tmp_path / "labels", "-o", tmp_path / "out", code=1)
        assert "holds no label image; NIfTI, NRRD or MHA files are needed" in result.output


@pytest.mark.usefixtures("no_pictures")
class TestRefused:
    def refused(self, *words, code=1):
        return run(*words, code=code).output

    def test_missing_and_empty_files(self, legs, tmp_path):
        assert "there is no such file" in self.refused("-i", tmp_path / "none.nii", "-o", tmp_path / "out")
        write_volume(tmp_path / "empty.nii", both_legs().with_array(np.zeros((40, 12, 20), np.uint8)))
        assert "nothing is labelled" in self.refused("-i", tmp_path / "empty.nii", "-o", tmp_path / "out")
        assert not (tmp_path / "out" / "report.html").exists()

    def test_images_on_another_grid(self, legs, tmp_path):
        write_volume(
            tmp_path / "scan.nii", Volume(np.zeros((40, 12, 20), np.float32), Geometry((40, 12, 20), np.eye(4)))
        )
        output = self.refused("-i", legs, "--scan", tmp_path / "scan.nii", "-o", tmp_path / "out")
        assert "scan.nii: is not on the labels' grid (40, 12, 20); resample the labels by nearest" in output

    def test_no_fat_fraction(self, legs, tmp_path):
        ff = write_image(tmp_path / "ff.nii", 900.0)
        output = self.refused("-i", legs, "--fat-fraction", ff, "-o", tmp_path / "out")
        assert "is no fat fraction; percent from 0 to 100 or shares from 0 to 1 are needed" in output

    def test_water_with_nan(self, legs, dixon, tmp_path):
        write_image(dixon[0], np.nan)
        assert "holds NaN or infinite values" in self.refused("-i", legs, "-r", *dixon, "-o", tmp_path / "out")

    def test_options_that_do_not_fit(self, legs, dixon, tmp_path):
        output = self.refused("-i", legs, "-r", *dixon, "--fat-fraction", dixon[0], "-o", tmp_path / "out", code=2)
        assert "give either them or a fat fraction" in output
        output = self.refused("-i", legs, "-r", dixon[0], dixon[0], "-o", tmp_path / "out", code=2)
        assert "is given as water and as fat, which makes 50 % everywhere; give two images" in output
        output = self.refused("-i", legs, "--landmark", "femur", "-o", tmp_path / "out")
        assert "no structure is called 'femur'; there are soleus_left" in output
        with pytest.raises(ValueError, match="axis is 'bone'; choose from slices"):
            measuring.MeasureOptions(axis="bone")

    def test_a_folder_that_holds_something_else(self, legs, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "report.html").write_text("mine")
        output = self.refused("-i", legs, "-o", tmp_path / "out")
        assert "holds the report of something else; choose a new folder" in output
        assert (tmp_path / "out" / "report.html").read_text() == "mine"
        assert "is a file; give the name of a folder" in self.refused("-i", legs, "-o", tmp_path / "dataset.json")
        assert "is an input and would be lost" in self.refused("-i", legs, "-o", legs)

    def test_subject_and_cohort_do_not_mix(self, legs, tmp_path):
        folder = write_legs(tmp_path / "labels").parent
        run("-i", legs, "-o", tmp_path / "one")
        assert "holds the report of one subject" in self.refused("-i", folder, "-o", tmp_path / "one")
        run("-i", folder, "-o", tmp_path / "many")
        assert "holds the report of a cohort" in self.refused("-i", legs, "-o", tmp_path / "many")


class TestRealData:
    def test_volumes_of_the_visible_human(self, data_dir):
        path = data_dir / "visible_human" / "VHF_Left_labels_1mm.nii.gz"
        if not path.exists():
            pytest.skip(f"{path.name} is not among the data")
        about = json.loads(path.with_name("VHF_Left_labels_1mm.json").read_text(encoding="utf-8"))
        meshes = {plain_name(key): row for key, row in about["volume_cm3_mesh_overlap_final"].items()}
        measures = measure_one(path)
        rows = {row["structure"]: row for row in measures.rows}
        assert set(rows) == set(meshes)
        within = 0
        for key, (mesh, _, counted) in meshes.items():
            assert rows[key]["volume_ml"] == pytest.approx(counted, abs=0.006)  # two decimals there
            assert rows[key]["inner_ml"] < mesh < rows[key]["outer_ml"]
            within += abs(rows[key]["volume_ml"] / mesh - 1) < 0.01
        # what muscles lack beyond 1 % was given to bones registered into them, which the JSON counts as their overlap
        assert within >= len(meshes) - 6
        lost = sum(mesh - rows[key]["volume_ml"] for key, (mesh, _, _) in meshes.items())
        assert lost == pytest.approx(sum(overlap for _, overlap, _ in meshes.values()), abs=0.6)

    def test_fat_of_a_patients_thigh_is_that_of_nibabel(self, data_dir):
        folder = data_dir / "thigh_fat_water"
        if not folder.exists():
            pytest.skip("thigh_fat_water is not among the data")
        files = [folder / f"Thigh_002_{part}.nii.gz" for part in ("labels", "0001", "0000")]
        options = measuring.MeasureOptions(dixon=(files[1], files[2]), names=folder / "labels.itksnap.label")
        measures = measure_one(files[0], options)
        labels, water, fat = (np.asarray(nib.load(path).dataobj, dtype=float).squeeze() for path in files)
        total = water + fat
        signal = total > 0.05 * np.percentile(total, 99)
        for row in measures.rows:
            inside = labels == row["id"]
            mean = (100 * fat[inside & signal] / total[inside & signal]).mean()
            assert row["ff_mean"] == pytest.approx(mean, rel=1e-4)
            assert row["ff_of_sums"] == pytest.approx(100 * fat[inside].sum() / total[inside].sum(), rel=1e-4)
