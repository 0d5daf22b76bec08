"""The published table against the sums stated with it, our table against hand arithmetic, histograms against counts."""

import json
import math

import numpy as np
import pytest

from tfmuscle.errors import DataError
from tfmuscle.evaluation.muscles import (
    PUBLISHED,
    SURFACE_DISTANCE,
    VOLUME_ERROR,
    Measured,
    muscle_table,
    overall,
    pooled_name,
    read_measured,
    remarks,
)
from tfmuscle.labels import LOWER_LIMB_MUSCLES, LabelMap, lower_limb
from tfmuscle.metrics import BOTH_EMPTY, METRICS, PREDICTION_EMPTY, REFERENCE_EMPTY
from tfmuscle.report import figure_png, histogram

NAMES = ("soleus_left", "soleus_right", "popliteus_left", "popliteus_right", "femur_left")
LEGS = LabelMap(dict(enumerate(NAMES, start=1)))
NAN = math.nan


def row(subject, structure, dice, note="", error=5.0, distance=1.0):
    figures = {VOLUME_ERROR: error, SURFACE_DISTANCE: distance, "volume_difference_percent": -error}
    return {"subject_id": subject, "structure": structure, "note": note, "dice": dice, **figures}


def measured(*rows, label_map=LEGS, failures=None, **context):
    return Measured(rows, label_map, context, failures or {})


def by_name(found):
    return {line["structure"]: line for line in muscle_table(found)}


class TestPublished:
    def test_it_is_of_all_muscles(self):
        assert tuple(PUBLISHED) == LOWER_LIMB_MUSCLES and len(PUBLISHED) == 35

    def test_its_sums_are_those_stated(self):
        # the paper: 0.892 on average against 0.909 between observers, from 0.70 to 0.97; 15 muscles not below observers
        assert np.mean([line.mean for line in PUBLISHED.values()]) == pytest.approx(0.892, abs=1e-3)
        assert np.mean([line.observers for line in PUBLISHED.values()]) == pytest.approx(0.909, abs=1e-3)
        assert sum(line.mean >= line.observers for line in PUBLISHED.values()) == 15
        assert min(PUBLISHED.items(), key=lambda item: item[1].mean) == ("external_rotators", (0.84, 0.70, 0.101))
        assert max(PUBLISHED.items(), key=lambda item: item[1].mean) == ("gluteus_maximus", (0.97, 0.97, 0.006))


class TestPooledName:
    @pytest.mark.parametrize("name", LOWER_LIMB_MUSCLES)
    def test_every_muscle_in_many_spellings(self, name):
        camel = "".join(word.capitalize() for word in name.split("_"))
        spaced = name.replace("_", " ")
        spellings = (f"{name}_left", f"{name}_R", f"right {spaced}", f"{camel}Left", f"{spaced.title()} (left)", name)
        assert {pooled_name(spelling) for spelling in spellings} == {name}

    @pytest.mark.parametrize(
        ("structure", "name"),
        [
            ("hip_left", "hip"),
            ("L4", "l4"),
            ("gastrocnemius_lateral_head_left", "gastrocnemius_lateral_head"),
            ("psoas_left_major", "psoas_major"),
            ("flexor_l_hallucis", "flexor_l_hallucis"),  # a letter inside is no side
            ("Müskel_links", "müskel_links"),
            ("?", "structure"),
        ],
    )
    def test_others(self, structure, name):
        assert pooled_name(structure) == name


class TestTable:
    def test_sides_are_pooled_within_a_subject_first(self):
        found = measured(
            *(row("a", "soleus_left", 0.9), row("a", "soleus_right", 0.8)),  # 0.85
            *(row("b", "soleus_left", 0.7), row("b", "soleus_right", 1.0, BOTH_EMPTY)),  # 0.70: the right is unknown
        )
        line = by_name(found)["soleus"]
        assert line["dice_mean"] == pytest.approx((0.85 + 0.70) / 2)
        assert line["dice_sd"] == pytest.approx(abs(0.85 - 0.70) / math.sqrt(2))  # sd of two values, n - 1
        counts = [line[key] for key in ("n_subjects", "n_sides", "n_missed", "n_unknown", "n_invented")]
        assert counts == [2, 3, 0, 1, 0]
        assert line["difference"] == pytest.approx(0.775 - 0.94)
        assert (line["published_sd"], line["observers_mean"], line["note"]) == (0.019, 0.93, "without reference: 1")

    def test_one_subject_has_no_sd(self):
        assert math.isnan(
            by_name(measured(row("a", "soleus_left", 0.9), row("a", "soleus_right", 0.8)))["soleus"]["dice_sd"]
        )

    @pytest.mark.parametrize(
        ("notes", "note", "dice"),
        [
            ((PREDICTION_EMPTY, ""), "not found: 1 of 2", 0.3),
            ((PREDICTION_EMPTY, PREDICTION_EMPTY), "not found in any subject", 0.0),
            ((BOTH_EMPTY, BOTH_EMPTY), "unknown, drawn in no subject", NAN),
            ((BOTH_EMPTY, REFERENCE_EMPTY), "unknown, drawn in no subject (predicted: 1)", NAN),
            ((PREDICTION_EMPTY, REFERENCE_EMPTY), "not found in any subject, without reference: 1 (predicted: 1)", 0.0),
        ],
    )
    def test_lost_and_unknown_muscles(self, notes, note, dice):
        dices = {PREDICTION_EMPTY: 0.0, REFERENCE_EMPTY: 0.0, BOTH_EMPTY: 1.0, "": 0.6}
        sides = zip(("soleus_left", "soleus_right"), notes, strict=True)
        line = by_name(measured(*(row("a", side, dices[what], what) for side, what in sides)))["soleus"]
        assert line["note"] == note
        assert line["dice_mean"] == pytest.approx(dice, nan_ok=True)

    def test_order(self):
        names = ("soleus", "popliteus", "gracilis", "iliacus", "femur", "tibia")
        dices = (0.8, 0.3, 0.8, 1.0, 0.1, 0.05)
        rows = [row("a", name, dice, BOTH_EMPTY * (dice == 1)) for name, dice in zip(names, dices, strict=True)]
        found = measured(*rows, label_map=LabelMap(dict(enumerate(names, start=1))))
        # the paper's muscles, worst first, equal ones by name, unknown ones last; then all others
        order = ["popliteus", "gracilis", "soleus", "iliacus", "tibia", "femur"]
        table = muscle_table(found)
        assert [line["structure"] for line in table] == order
        assert math.isnan(table[-1]["published_mean"]) and math.isnan(table[-1]["difference"])

    def test_means_are_over_the_same_muscles(self):
        rows = [row("a", "soleus_left", 0.96), row("a", "popliteus_left", 0.5), row("a", "femur_left", 0.0)]
        means = overall(muscle_table(measured(*rows)))
        # soleus 0.94 and 0.93 between observers, popliteus 0.88 and 0.90; the femur is no muscle
        expected = {"n_muscles": 2, "dice_mean": 0.73, "published_mean": 0.91, "observers_mean": 0.915}
        assert means == pytest.approx(expected | {"difference": -0.18, "n_not_below_observers": 1})

    def test_remarks(self):
        found = measured(
            *(row("a", "soleus_left", 0.0, PREDICTION_EMPTY), row("a", "popliteus_left", 1.0, BOTH_EMPTY)),
            failures={"b": "broken", "image of a": "no image"},
        )
        lines = remarks(found, muscle_table(found))
        assert lines[0] == "Not found in any subject, Dice 0: soleus."
        assert lines[1] == "Unknown, because no subject has a reference of them: popliteus, femur."
        assert lines[2].startswith("No label of these predictions, 33 of the paper's 35 muscles: adductor_brevis, ")
        assert lines[3:] == ["Failed, and in none of these figures: b."]

    def test_remarks_on_other_structures_and_on_all_muscles(self):
        bones = measured(row("a", "femur", 0.9), label_map=LabelMap({1: "femur"}))
        assert remarks(bones, muscle_table(bones)) == [
            "None of the labels is one of the paper's 35 muscles, so nothing stands beside them."
        ]
        whole = lower_limb()
        complete = measured(*(row("a", name, 0.9) for name in whole.structures), label_map=whole)
        assert remarks(complete, muscle_table(complete)) == []
        assert [line["structure"] for line in muscle_table(complete)[:35]] == sorted(LOWER_LIMB_MUSCLES)

    def test_what_enters_the_histograms(self):
        rows = [
            row("a", "soleus_left", 0.9),
            row("a", "femur_left", 0.9),
            row("a", "soleus_right", 0.0, REFERENCE_EMPTY),
        ]
        assert measured(*rows).compared == (rows[0],)
        assert measured(rows[1]).compared == (rows[1],)


class TestReadMeasured:
    content = {
        "rows": [{"subject_id": "a", "structure": "soleus_left", "note": "", **dict.fromkeys(METRICS, 1.0)}],
        "label_map": {"background": 0, "soleus_left": 1},
        "context": {"dataset": "legs", "scale": "reduced"},
        "failures": {"b": "broken"},
    }

    def read(self, folder, **changes):
        (folder / "metrics.json").write_text(json.dumps({**self.content, **changes}), encoding="utf-8")
        return read_measured(folder)

    def changed(self, **changes):
        return {"rows": [{**self.content["rows"][0], **changes}]}

    def test_null_is_undefined(self, tmp_path):
        found = self.read(tmp_path, **self.changed(mean_surface_distance=None))
        assert math.isnan(found.rows[0]["mean_surface_distance"]) and found.rows[0]["dice"] == 1.0
        assert (found.subjects, found.reduced, found.failures) == (("a",), " (reduced)", {"b": "broken"})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rows": 3}, "not as `tfmuscle evaluate` writes it"),
            ({"rows": []}, "no subject was measured .b: broken.; evaluate again"),
            ({"label_map": {"soleus_left": "x"}}, "has the id 'x'"),
            ({"label_map": {"femur": 1}}, "the label map does not name soleus_left"),
            ({"context": []}, "not as `tfmuscle evaluate` writes it"),
            ("dice", "dice of soleus_left is 'high'"),
            ("note", "a row is called"),
            ("missing", "mean_surface_distance.*evaluate again"),
            ("huge", "not as `tfmuscle evaluate` writes it"),
        ],
    )
    def test_damaged(self, tmp_path, changes, message):
        named = {
            "dice": self.changed(dice="high"),
            "note": self.changed(note=["empty"]),
            "huge": self.changed(dice=10**400),
            "missing": {
                "rows": [{key: value for key, value in self.content["rows"][0].items() if "surface" not in key}]
            },
        }
        with pytest.raises(DataError, match=message):
            self.read(tmp_path, **(named[changes] if isinstance(changes, str) else changes))

    def test_no_evaluation(self, tmp_path):
        with pytest.raises(DataError, match=r"holds no metrics.json; give the folder that `tfmuscle evaluate` wrote"):
            read_measured(tmp_path)


class TestHistogram:
    def parts(self, values, **options):
        figure = histogram(values, quantity="volume error", unit="%", **options)
        axes = figure.axes[0]
        bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in axes.patches]
        texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert figure_png(figure, dpi=40)
        return axes, bars, texts

    def test_counts_and_means(self):
        values = [1.0, 1.2, 3.0, 9.0, NAN]  # mean 3.55; bars reach to twice the published mean, 13 = 26 x 0.5
        axes, bars, texts = self.parts(values, published=6.5, counted="muscles", title="2 subjects, ")
        assert {x: height for x, _, height in bars if height} == {1.0: 2, 3.0: 1, 9.0: 1}
        assert len(bars) == 26 and {round(width, 9) for _, width, _ in bars} == {0.5}
        assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([3.55, 6.5])
        assert texts == ["mean here: 3.55 %", "mean in the paper: 6.5 %"]
        assert axes.get_title() == "2 subjects, n = 4, 1 undefined"
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("volume error (%)", "number of muscles")

    def test_far_values_have_a_bar_of_their_own(self):
        values = [1.0] * 98 + [300.0, 700.0]  # mean 10.98
        axes, bars, texts = self.parts(values)
        assert sum(height for _, _, height in bars) == 100
        assert bars[-1][2] == 2 and bars[-1][0] >= max(x for x, _, _ in bars[:-1])
        assert texts == ["mean here: 11.0 %", "2 above 12 %, up to 700 %"]
        assert axes.get_xticklabels()[-1].get_text() == "> 12"
        assert axes.lines[0].get_xdata()[0] < 12  # the mean is always in the picture

    @pytest.mark.parametrize("values", [[], [NAN], [0.0, 0.0], [5.0], [1e-7, 2e-7], [1e12, 3.0]])
    @pytest.mark.parametrize("published", [None, 2.9])
    def test_odd_values_are_drawn(self, values, published):
        axes, bars, _ = self.parts(values, published=published, title="$x$ 図 ")
        assert sum(height for _, _, height in bars) == np.isfinite(values).sum()
        assert all(tick == round(tick) for tick in axes.get_yticks())
