"""label-curve: its figures by hand, and who is among fewer subjects."""

import math
from pathlib import Path

import pytest

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.evaluation.label_curve import PUBLISHED, curve_table, mean_interval
from tfmuscle.folds import person_of
from tfmuscle.labels import LabelMap
from tfmuscle.records import RecordIndex
from tfmuscle.report.label_curve import label_curve_figure, readable_curve
from tfmuscle.training import supervised

LABELS = LabelMap({1: "tibia", 2: "femur"})
PERSONS = ("p0", "p1", "p2", "p3", "p4", "p5_left", "p5_right")


def row(arm, size, seed, subject, dice, structure="femur"):
    return {
        "arm": arm, "subjects": size, "seed": seed, "subject_id": subject, "structure": structure, "dice": dice,
    }  # fmt: skip


class TestStatistics:
    def test_a_curve_by_hand(self):
        rows = [
            *(row("ssl", 1, 0, "a", dice, name) for dice, name in ((0.8, "femur"), (0.4, "tibia"))),  # mean 0.6
            *(row("ssl", 1, 0, f"b_{side}", dice) for dice, side in ((0.9, "left"), (0.7, "right"))),  # one person: 0.8
            row("ssl", 1, 1, "a", 0.5), row("ssl", 1, 1, "b_left", 0.7),
            row("random", 1, 0, "a", 0.5), row("random", 1, 0, "b_left", 0.5),
            row("random", 1, 1, "a", 0.2), row("random", 1, 1, "b_left", 0.6),
        ]  # fmt: skip
        (line,) = curve_table(rows)
        assert (line["subjects"], line["ssl_seeds"], line["random_seeds"], line["persons"]) == (1, 2, 2, 2)
        assert [line["ssl_seed_0"], line["ssl_seed_1"]] == pytest.approx([0.7, 0.6])
        assert (line["ssl_mean"], line["random_mean"]) == pytest.approx((0.65, 0.45))
        assert line["ssl_sd"] == pytest.approx(0.1 / math.sqrt(2))
        # a: (0.1 + 0.3) / 2 = 0.2; b: (0.3 + 0.1) / 2 = 0.2; seeds: 0.2 and 0.2
        assert (line["difference"], line["low"], line["high"]) == pytest.approx((0.2, 0.2, 0.2))
        assert [line["difference_seed_0"], line["difference_seed_1"]] == pytest.approx([0.2, 0.2])
        assert math.isnan(line["median_low"]) and line["median_difference"] == pytest.approx(0.2)

    def test_the_interval_of_the_mean_is_student_s(self):
        # sd of 1, 2, 3 is 1; t of 2 degrees of freedom at 97.5 % has the closed form 0.95 sqrt(2 / (1 - 0.95**2))
        half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
        assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half))
        assert all(map(math.isnan, mean_interval([1.0])))

    def test_pairs_are_of_one_seed_and_one_person(self):
        rows = [row("ssl", 2, 0, "a", 0.9), row("ssl", 2, 1, "a", 0.1), row("ssl", 2, 0, "only here", 0.0)]
        (line,) = curve_table([*rows, row("random", 2, 0, "a", 0.8)])
        assert line["difference"] == pytest.approx(0.1)  # seed 1 has no rival, nor has the other person
        assert line["persons"] == 1 and math.isnan(line["low"]) and math.isnan(line["difference_seed_1"])
        assert line["ssl_mean"] == pytest.approx((0.45 + 0.1) / 2) and math.isnan(line["random_sd"])

    def test_a_structure_that_neither_has_is_left_out(self):
        rows = [row("ssl", 1, 0, "a", dice, name) for name, dice in (("femur", 0.4), ("tibia", 1.0), ("fibula", 0.0))]
        rows[1]["note"], rows[2]["note"] = "both empty", "prediction empty"
        assert curve_table(rows)[0]["ssl_mean"] == pytest.approx(0.2)  # femur and fibula

    def test_what_is_undefined_is_nan_and_sizes_are_in_order(self):
        lines = curve_table([row("random", 10, 0, "a", 0.0), row("ssl", 2, 0, "a", math.nan)])
        assert [line["subjects"] for line in lines] == [2, 10]
        for name in ("ssl_mean", "random_mean", "difference", "low", "median_difference"):
            assert math.isnan(lines[0][name])
        assert lines[1]["random_mean"] == 0.0 and lines[1]["ssl_seeds"] == 0
        assert curve_table([]) == []

    def test_the_figure_has_the_published_points_as_open_markers(self):
        assert PUBLISHED == {"ssl": {1: 0.631, 40: 0.927}, "random": {1: 0.530, 40: 0.924}}
        rows = [row(arm, size, 0, "a", 0.5) for arm in ("ssl", "random") for size in (1, 5)]
        rows += [row("ssl", 10, 0, "a", 0.5)]
        above, below = label_curve_figure(curve_table(rows), published=PUBLISHED).axes
        open_ones = [line for line in above.lines if line.get_markerfacecolor() == "none"]
        assert [list(line.get_ydata()) for line in open_ones] == [[0.631, 0.927], [0.530, 0.924]]
        assert all("published, other data" in line.get_label() for line in open_ones)
        assert [text.get_text() for text in below.get_xticklabels()] == ["1", "5", "10", "40"]
        text = readable_curve(curve_table(rows), published=PUBLISHED)
        assert text[0]["published, other data"] == "0.631 and 0.530" and text[1]["published, other data"] == "–"
        assert text[2]["difference"] == "–" and text[2]["random start, Dice"] == "–"


class TestSubjects:
    ENTRIES = tuple(
        {"subject_id": name, "fold": fold, "status": "ok", "samples": 3, "file": ""}
        for name, fold in zip((*PERSONS, "t0"), (0, 0, 0, 0, 1, 0, 0, -1), strict=True)
    )

    def split(self, **changes):
        spec = DataSpec(LABELS, folds=2)
        return supervised.split_of(RecordIndex(Path("r"), self.ENTRIES), spec, TrainConfig(fold=1, **changes))

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_fewer_are_always_among_more(self, seed):
        before = set()
        for number in range(1, 6):
            split = self.split(subjects=number, seed=seed)
            now = set(split["train"])
            assert before < now and len(set(map(person_of, now))) == number
            assert len({"p5_left", "p5_right"} & now) in (0, 2)  # both legs of a person, or none
            assert now.isdisjoint(split["unused"]) and len(now) + len(split["unused"]) == 6
            assert (split["validation"], split["test"]) == (["p4"], ["t0"])
            before = now
        assert before == set(self.split()["train"]) and "unused" not in self.split()

    def test_another_seed_is_another_order(self):
        assert len({tuple(self.split(subjects=1, seed=seed)["train"]) for seed in range(8)}) > 1

    def test_persons_without_a_labelled_sample_are_not_counted(self):
        entries = tuple(one | {"samples": 3 * (one["subject_id"] not in ("p1", "p5_left"))} for one in self.ENTRIES)
        index, spec = RecordIndex(Path("r"), entries), DataSpec(LABELS, folds=2)
        split = supervised.split_of(index, spec, TrainConfig(fold=1, subjects=4))  # p0, p2, p3 and p5 for a right leg
        assert "p1" in split["unused"] and "p5_left" in split["train"]
        with pytest.raises(ValueError, match="subjects is 5; there are 4 persons to train on"):
            supervised.split_of(index, spec, TrainConfig(fold=1, subjects=5))

    def test_too_many_are_refused(self):
        with pytest.raises(ValueError, match="subjects is 6; there are 5 persons to train on"):
            self.split(subjects=6)
        with pytest.raises(ValueError, match="subjects is -1; a number of persons is needed, or 0 for all"):
            TrainConfig(subjects=-1)

    def test_settings_of_older_runs_are_the_same_as_ever(self, tmp_path):
        assert "subjects" not in TrainConfig().to_dict()
        few = TrainConfig(subjects=3)
        few.save(tmp_path / "train.json")
        assert TrainConfig.load(tmp_path / "train.json") == few
        TrainConfig().save(tmp_path / "train.json")
        assert TrainConfig.load(tmp_path / "train.json").subjects == 0
