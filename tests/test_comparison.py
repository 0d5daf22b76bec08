"""Statistics against scipy, enumeration and hand arithmetic; tables and page against figures counted in comments."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from tfmuscle.errors import DataError
from tfmuscle.evaluation.comparison import (
    Comparison,
    ModelResult,
    comparison_table,
    holm,
    median_interval,
    paired_tests,
    per_person,
    signed_rank_p,
)
from tfmuscle.evaluation.comparison_page import readable_table, text_table, write_comparison
from tfmuscle.evaluation.published import published_bones, read_published
from tfmuscle.evaluation.results import ALL_STRUCTURES
from tfmuscle.metrics import METRICS
from tfmuscle.report import difference_plot, figure_png, model_boxes


def row(subject, structure, dice, **others):
    """A row of an evaluation whose unnamed metrics are 1."""
    return {
        "subject_id": subject,
        "structure": structure,
        "note": "",
        **dict.fromkeys(METRICS, 1.0),
        "dice": dice,
    } | others


def model(name, dices, **options):
    """A model with one structure and subjects s0, s1, ..."""
    return ModelResult(name, tuple(row(f"s{number}", "tibia", dice) for number, dice in enumerate(dices)), **options)


def comparison(tmp_path, *models, **options):
    defaults = {"failures": {}, "waiting": {}, "context": {"data": "legs", "scale": "full"}, "cleaning": ()}
    tests = tuple(paired_tests(models))
    return Comparison(models, tuple(comparison_table(models)), tests, **defaults | options, out=tmp_path)


def by_enumeration(differences):
    """Two-sided p of the signed-rank test from all 2^n signs of the mean ranks."""
    values = np.array([value for value in differences if value != 0])
    ranks = stats.rankdata(np.abs(values))
    found = ranks[values > 0].sum()
    sums = np.array([ranks @ signs for signs in itertools.product((0, 1), repeat=len(values))])
    return min(1.0, 2 * min((sums <= found + 1e-9).mean(), (sums >= found - 1e-9).mean()))


class TestSignedRank:
    @pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 12, 30])
    def test_like_scipy_without_ties(self, n):
        differences = np.random.default_rng(n).normal(0.3, 1, n)
        expected = stats.wilcoxon(differences, method="exact").pvalue
        assert signed_rank_p(differences.tolist()) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("seed", range(4))
    def test_like_enumeration_with_ties_and_zeros(self, seed):
        differences = np.random.default_rng(seed).integers(-3, 5, 9).astype(float)
        assert signed_rank_p(differences.tolist()) == pytest.approx(by_enumeration(differences), abs=1e-12)

    def test_rounding_makes_no_rank(self):
        # 0.3 - 0.2 and 0.2 - 0.1 differ in the 17th digit only: a tie, with opposite signs a p of 1
        assert signed_rank_p([0.3 - 0.2, 0.1 - 0.2]) == 1.0

    def test_all_equal_and_none(self):
        assert signed_rank_p([0.0, 0.0]) == 1.0
        assert math.isnan(signed_rank_p([]))


class TestHolm:
    def test_by_hand(self):
        # sorted: .005*4, .01*3, .03*2, .04*1, each at least the one before
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_undefined_ones_do_not_count(self):
        assert holm([math.nan, 0.02])[1] == 0.02

    def test_never_above_one(self):
        assert holm([0.9, 0.8]) == [1.0, 1.0]


class TestMedianInterval:
    @pytest.mark.parametrize("n", [6, 7, 8, 9, 20, 53])
    def test_limits_cover_what_the_binomial_says(self, n):
        values = np.arange(n, dtype=float)
        low, high, coverage = median_interval(values)
        k = int(low) + 1  # the values are their own ranks
        assert high == n - k
        assert coverage == pytest.approx(1 - 2 * stats.binom.cdf(k - 1, n, 0.5))
        assert coverage >= 0.95 > 1 - 2 * stats.binom.cdf(k, n, 0.5)

    def test_none_below_six(self):
        assert all(map(math.isnan, median_interval([1.0] * 5)))

    def test_order_does_not_matter(self):
        assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0, 0.96875)


class TestPairs:
    def test_both_legs_of_a_person_count_once(self):
        rows = [row("a_left", "tibia", 0.4), row("a_right", "tibia", 0.8), row("b", "tibia", 1.0)]
        assert per_person(rows) == pytest.approx({"a": 0.6, "b": 1.0})

    def test_structures_are_averaged_within_a_subject_and_undefined_ones_left_out(self):
        rows = [row("a", "tibia", 0.4), row("a", "femur", 0.8), row("b", "tibia", math.nan)]
        assert per_person(rows) == pytest.approx({"a": 0.6})

    def test_six_persons_can_differ(self):
        better = model("better", [0.9, 0.8, 0.85, 0.7, 0.95, 0.9])
        worse = model("worse", [0.8, 0.75, 0.7, 0.65, 0.9, 0.6])
        (test,) = paired_tests([worse, better])
        assert (test["n"], test["left_out"], test["p"]) == (6, 0, 2 / 64)
        assert test["median_difference"] == pytest.approx(-(0.05 + 0.1) / 2)  # .05 .05 .05 .1 .15 .3
        assert (test["low"], test["high"]) == pytest.approx((-0.3, -0.05))
        assert test["verdict"] == "better is better"

    def test_too_few_persons_are_said_plainly(self):
        (test,) = paired_tests([model("a", [0.9] * 5), model("b", [0.1] * 5)])
        assert test["p"] == 0.0625 and test["verdict"] == "too few persons: with 5, p cannot fall below 0.0625"

    def test_too_few_for_that_many_pairs(self):
        tests = paired_tests([model(name, np.linspace(0, 0.5, 6) * k) for k, name in enumerate("abc")])
        # 3 pairs: the least p of 6 persons, 2/64, times 3 is 0.094
        assert {test["verdict"] for test in tests} == {
            "too few persons: with 6 and 3 pairs, the least p cannot fall below 0.0938"
        }

    def test_only_common_persons_are_compared(self):
        (test,) = paired_tests([model("a", [0.5] * 7), model("b", [0.5] * 9)])
        assert (test["n"], test["left_out"], test["verdict"]) == (7, 2, "no difference shown")

    def test_nobody_in_common(self):
        other = ModelResult("b", (row("t", "tibia", 1.0),))
        (test,) = paired_tests([model("a", [1.0]), other])
        assert test["verdict"] == "no person in common" and math.isnan(test["p_holm"])


class TestTable:
    def test_means_are_between_subjects(self):
        one = ModelResult(
            "one",
            (
                row("a", "tibia", 1.0, assd=math.nan),
                row("a", "femur", 0.5),
                row("b", "tibia", 0.5),
                row("b", "femur", 0.5),
            ),
            costs={"parameters": 7},
            failed=2,
        )
        table = {line["structure"]: line for line in comparison_table([one])}
        assert list(table) == ["tibia", "femur", ALL_STRUCTURES]
        assert table["tibia"]["dice_mean"] == 0.75
        assert table["tibia"]["dice_sd"] == pytest.approx(0.5 / math.sqrt(2))  # n - 1
        assert table[ALL_STRUCTURES]["dice_mean"] == pytest.approx((0.75 + 0.5) / 2)
        assert (table["tibia"]["n"], table["tibia"]["n_undefined"], table["tibia"]["assd_mean"]) == (2, 1, 1.0)
        assert (table["femur"]["n_failed"], table["femur"]["parameters"], table["femur"]["training_seconds"]) == (
            2,
            7,
            None,
        )
        assert math.isnan(comparison_table([model("x", [0.3])])[0]["dice_sd"])

    def test_published_stand_beside_ours(self):
        ours = model("ours", [0.8], published={"tibia": {"dice": (0.93, 0.02)}})
        table = comparison_table([ours, model("other", [0.7])])
        assert [line["published_dice_mean"] for line in table] == [0.93, None, None, None]


class TestPublished:
    def test_bones(self):
        found = published_bones()
        assert found["cheena_resnet34"].structures["pelvis"] == {"dice": (0.88, 0.03), "volume_error_ml": (24.5, 3.9)}
        assert found["nnunet_2d_seed002"] == found["nnunet_2d"] != found["nnunet_3d"]
        assert found["nnunet_3d"].costs == {"trainable_parameters": 62e6, "seconds_per_scan": 540}

    def test_overall_means_are_those_of_the_paper(self):
        # the paper's own means over bones: Dice, volume error in cm3
        said = {
            "cheena_resnet34": (0.89, 8.4),
            "nnunet_2d": (0.85, 13.7),
            "nnunet_3d": (0.82, 14.8),
            "cheena_unet2d": (0.73, 23.9),
        }
        for preset, figures in said.items():
            bones = published_bones()[preset].structures.values()
            found = [np.mean([bone[metric][0] for bone in bones]) for metric in ("dice", "volume_error_ml")]
            # half a unit of the last digit that the paper prints, and rounding of the sum
            assert found[0] == pytest.approx(figures[0], abs=0.0051)
            assert found[1] == pytest.approx(figures[1], abs=0.051)

    def test_a_file_of_ones_own(self, tmp_path):
        path = tmp_path / "published.json"
        models = {"demo": {"structures": {"femur": {"dice": [0.9, 0.1]}}, "costs": {"seconds_per_scan": 3}}}
        path.write_text(json.dumps({"source": "a paper", "models": models}))
        found = read_published(path)["demo"]
        assert (found.source, found.structures, found.costs) == (
            "a paper",
            {"femur": {"dice": (0.9, 0.1)}},
            {"seconds_per_scan": 3},
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({}, '"models" is NoneType'),
            ({"models": {"x": 3}}, 'x has no object "structures"'),
            ({"models": {"x": {"structures": {}, "costs": {"price": 1}}}}, "costs of x are .*numbers named parameters"),
            ({"models": {"x": {"structures": {"tibia": {"dice": 0.9}}}}}, r"x, tibia: 'dice' is 0.9; \[mean, sd\]"),
            ({"models": {"x": {"structures": {"tibia": {"beauty": [1, 2]}}}}}, "'beauty' is .*one of dice, iou"),
            ({"models": {"x": {"structures": {"tibia": [1, 2]}}}}, "x, tibia: '' is"),
        ],
    )
    def test_another_form_is_refused(self, tmp_path, content, message):
        (tmp_path / "published.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            read_published(tmp_path / "published.json")


class TestPage:
    def test_files_hold_the_same_figures(self, tmp_path):
        ours = model("ours", [0.5, 0.75], published={"tibia": {"dice": (0.93, 0.02)}}, about={"epochs": "3"})
        result = comparison(tmp_path, ours, model("<b>other", [0.5, 0.5]), context={"data": "legs", "epochs": "many"})
        write_comparison(result, "comparison", title="Legs", published={"ours": "a paper"})
        with (tmp_path / "comparison.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [line["model"] for line in rows] == ["ours", "<b>other"] * 2
        assert (float(rows[0]["dice_mean"]), rows[0]["published_dice_mean"], rows[0]["epochs"]) == (0.625, "0.93", "3")
        assert (rows[0]["data"], rows[0]["training_seconds"], rows[1]["published_dice_mean"]) == ("legs", "", "")
        content = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
        assert content["table"][0]["dice_mean"] == 0.625 and len(content["subjects"]) == 4
        assert content["tests"][0]["verdict"].startswith("too few persons")
        page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
        assert "0.625 ± 0.177" in page and "0.930 ± 0.020" in page and "too few persons" in page and "a paper" in page
        assert "&lt;b&gt;other" in page and "<b>other" not in page and "http" not in page and "reduced" not in page
        assert page.count("data:image/png;base64") == 2

    def test_reduced_failed_and_waiting_are_said(self, tmp_path):
        about = {"context": {"scale": "reduced (laptop)"}, "failures": {"a, fold 1": "no memory"}}
        result = comparison(tmp_path, model("a", [0.5]), **about, waiting={"a, fold 2": "in work: process 7"})
        write_comparison(result, "study", title="Legs", published={})
        page = (tmp_path / "study.html").read_text(encoding="utf-8")
        assert "Legs (reduced)" in page and "no memory" in page and "process 7" in page and "nothing to compare" in page
        assert text_table(result).endswith("reduced: the recipes were cut down")

    def test_nothing_at_all(self, tmp_path):
        result = comparison(tmp_path, failures={"a, fold 0": "no memory"})
        write_comparison(result, "comparison", title="Legs", published={})
        assert "No model has predicted anything yet" in (tmp_path / "comparison.html").read_text(encoding="utf-8")
        assert text_table(result) == "no model has predicted anything yet"

    def test_varied_settings_are_columns(self, tmp_path):
        two = [model(name, [0.5], varied={"loss": "dice", "epochs": n}) for n, name in enumerate("ab")]
        (first, *_) = readable_table(comparison(tmp_path, *two))
        assert (first["loss"], first["epochs"], first["Dice"]) == ("dice", "0", "0.500")


class TestFigures:
    def test_one_box_for_each_model_and_structure(self):
        rows = {"a": [row("s", "tibia", 0.5), row("s", "femur", 0.7)], "b": [row("s", "tibia", math.nan)]}
        figure = model_boxes(rows, title="$5")
        (axes,) = figure.axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["tibia", "femur"]
        points = [line for line in axes.lines if line.get_marker() == "o"]
        # model a is drawn above the middle of each structure, the undefined figure of b not at all
        assert sorted((line.get_xdata()[0], round(line.get_ydata()[0], 3)) for line in points) == [
            (0.5, -0.215),
            (0.7, 0.785),
        ]
        assert figure_png(figure).startswith(b"\x89PNG")

    def test_differences(self):
        pairs = {"a - b": [0.1, 0.2, 0.4], "a - c": [0.1]}
        figure = difference_plot(pairs, {"a - b": (0.2, 0.1, 0.4), "a - c": (0.1, math.nan, math.nan)})
        (axes,) = figure.axes
        bars = [
            list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2
        ]
        assert bars == [[0.1, 0.4]]
        assert figure_png(figure).startswith(b"\x89PNG")

    @pytest.mark.parametrize("count", [0, 9, 200])
    def test_any_number(self, count):
        rows = {f"model {n}": [row(f"s{i}", "tibia", i / 200) for i in range(200)] for n in range(min(count, 9))}
        assert figure_png(model_boxes(rows, metric="assd")).startswith(b"\x89PNG")
