"""Figures are judged by what matplotlib drew (lines, images, texts), pages by parsing them again."""

import base64
import html.parser
import io
import math

import matplotlib.image
import numpy as np
import pytest

from tfmuscle.labels import LabelMap
from tfmuscle.report import Section, box_plot, figure_png, html_page, informative_slices, overlay, training_curves
from tfmuscle.volume import Geometry, Volume

HOSTILE = '<script>alert("1")</script> $x^2$ & _ümlaut 図'
SLAB = (0.7, 0.7, 9.0)
LEGS = LabelMap({1: "femur_left", 2: "femur_right", 3: "tibia_left"}, ignore=255)


def volume(array, diagonal=(1.0, 1.0, 1.0)):
    return Volume(array, Geometry(array.shape[:3], np.diag([*diagonal, 1.0])))


def labels(shape=(12, 10, 8)):
    array = np.zeros(shape, dtype=np.uint8)
    array[2:6, 2:6, 2:7], array[7:10, 3:8, 3:6] = 1, 2
    return array


def pixels(figure):
    return matplotlib.image.imread(io.BytesIO(figure_png(figure, dpi=60)), format="png")


def texts(axes):
    return {text.get_text() for text in axes.texts}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


class TestTrainingCurves:
    def test_a_panel_per_quantity_and_the_best_epoch(self):
        history = {
            "epoch": [0, 1, 2],
            "loss": [3.0, 2.0, 1.0],
            "val_loss": [3.0, 1.5, 2.5],
            "val_dice": [0.2, 0.7, 0.6],
        }
        figure = training_curves(history)
        assert [axes.get_title() for axes in figure.axes] == ["loss", "dice"]
        assert list(figure.axes[0].lines[0].get_ydata()) == [3.0, 2.0, 1.0]
        assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 3]
        stars = [axes.lines[-1] for axes in figure.axes]  # the lowest validation loss, the highest validation Dice
        assert [(star.get_xdata()[0], star.get_ydata()[0]) for star in stars] == [(2, 1.5), (2, 0.7)]

    @pytest.mark.parametrize("history", [{}, {"loss": [1.0], "val_loss": [math.nan]}, {HOSTILE: [1.0, math.inf]}])
    def test_odd_histories_are_drawn(self, history):
        figure = training_curves(history, title=HOSTILE)
        assert pixels(figure).std() > 0
        for axes in figure.axes[: len(history)]:
            assert all(tick == round(tick) for tick in axes.get_xticks())


class TestBoxPlot:
    rows = [
        *({"structure": "femur_left", "dice": value} for value in (0.7, 0.8, 0.9)),
        *({"structure": "tibia_left", "dice": value} for value in (0.5, math.nan)),
    ]

    def test_points_counts_and_marks(self):
        figure = box_plot(self.rows, label_map=LEGS, observers={"femur_left": 0.75}, marked=["femur_left"])
        axes = figure.axes[0]
        names = [tick.get_text() for tick in axes.get_yticklabels()]
        assert names == ["* femur_left  (n=3)", "tibia_left  (n=1, 1 undefined)"]
        points = [sorted(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
        assert points == [[0.7, 0.8, 0.9], [0.5]]
        diamonds = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "D"]
        assert diamonds == [[0.75]]
        assert legend(figure) == ["mean between observers", "* within human variability"]

    def test_the_unit_stands_at_the_axis(self):
        figure = box_plot([{"structure": "femur_left", "assd": 1.0}], metric="assd")
        assert figure.axes[0].get_xlabel() == "average symmetric surface distance (mm)"

    def test_nothing_to_draw_and_hostile_names(self):
        assert not box_plot([]).legends
        assert pixels(box_plot([{"structure": HOSTILE, "dice": 1.0}], title=HOSTILE)).std() > 0


class TestInformativeSlices:
    def test_most_structures_largest_disagreement_and_spread(self):
        reference = np.zeros((40, 4, 4), dtype=int)
        reference[5:35, 0, 0] = 1
        reference[12, 1, 1] = 2  # the only slice with two structures
        prediction = reference.copy()
        prediction[30] = 2  # 16 voxels, all of them wrong
        chosen = informative_slices(prediction, reference, count=4)
        assert chosen[12] == "most structures"
        assert chosen[30] == "largest disagreement"
        assert len(chosen) == 4
        others = sorted(set(chosen) - {12, 30})
        assert others[0] >= 5 and others[-1] < 35
        assert all(abs(a - b) >= 3 for a in chosen for b in chosen if a != b)

    @pytest.mark.parametrize(("depth", "count", "expected"), [(1, 4, 1), (2, 4, 2), (3, 1, 1), (50, 4, 4)])
    def test_number(self, depth, count, expected):
        empty = np.zeros((depth, 3, 3), dtype=int)
        full = np.ones((depth, 3, 3), dtype=int)
        assert len(informative_slices(empty, count=count)) == expected
        assert len(informative_slices(full, empty, count=count)) == expected

    def test_one_slice_may_have_both_reasons(self):
        reference, prediction = np.zeros((2, 5, 2, 2), dtype=int)
        reference[3] = 1
        assert informative_slices(prediction, reference, count=1) == {3: "most structures, largest disagreement"}

    def test_perfect_prediction_has_no_disagreement(self):
        array = np.ones((5, 2, 2), dtype=int)
        assert "largest disagreement" not in informative_slices(array, array).values()


class TestOverlay:
    def test_right_of_the_patient_is_on_the_left_anterior_on_top(self):
        # RAS: index 0 of axis 0 is the patient's left, so the voxel at (0, last) belongs in the upper right corner.
        image = np.zeros((6, 8, 3), dtype=np.float32)
        image[0, 7] = 1.0
        figure = overlay(volume(image), None, label_map=LEGS)
        shown = figure.axes[0].images[0].get_array()
        assert shown.shape == (8, 6)
        assert np.argwhere(shown == 1.0).tolist() == [[0, 5]]
        for text in figure.axes[0].texts:
            if text.get_text() in "RLAP":
                place = {"R": (0, 0.5), "L": (1, 0.5), "A": (0.5, 1), "P": (0.5, 0)}[text.get_text()]
                assert text.get_position() == pytest.approx(place, abs=0.05)
        assert {"R", "L", "A", "P"} <= texts(figure.axes[0])

    def test_flipped_and_permuted_storage_gives_the_same_picture(self):
        generator = np.random.default_rng(0)
        array = np.zeros((6, 8, 5), dtype=np.uint8)
        array[1:3, 2:7, 3] = 1  # so that slice 3 is chosen, whichever way the file counts
        both = [volume(one, (1.0, 1.0, 3.0)) for one in (generator.random(array.shape).astype(np.float32), array)]
        expected = overlay(*both, label_map=LEGS, count=1).axes[0].images
        for orientation in ("LPS", "SAR", "ILP"):
            drawn = overlay(*(one.reoriented(orientation) for one in both), label_map=LEGS, count=1).axes[0].images
            for one, other in zip(expected, drawn, strict=True):
                assert np.array_equal(one.get_array(), other.get_array())

    @pytest.mark.parametrize(("diagonal", "letters"), [((1, 5, 1), set("RLSI")), ((5, 1, 1), set("APSI"))])
    def test_coronal_and_sagittal_stacks(self, diagonal, letters):
        figure = overlay(volume(np.ones((6, 6, 6)), diagonal), None, label_map=LEGS)
        assert {text for text in texts(figure.axes[0]) if len(text) == 1} == letters

    def test_millimetres(self):
        # 12 x 10 voxels of 0.5 x 2 mm: 6 mm wide, 20 mm high.
        figure = overlay(volume(np.ones((12, 10, 3)), (0.5, 2.0, 5.0)), None, label_map=LEGS)
        axes = figure.axes[0]
        assert axes.images[0].get_extent() == pytest.approx([0, 6, 20, 0])
        assert axes.get_aspect() == 1.0
        assert "2 mm" in texts(axes)  # the scale bar: at most a third of the width

    def test_prediction_is_filled_and_reference_outlined(self):
        reference = labels((12, 10, 1))
        reference[2:6, 2:6], reference[7:10, 3:8] = 1, 0
        prediction = np.zeros_like(reference)
        prediction[3, 4] = 2
        axes = overlay(None, volume(prediction), volume(reference), label_map=LEGS).axes[0]
        filled = axes.images[1].get_array()
        assert sorted(map(tuple, np.unique(filled.reshape(-1, 4), axis=0))) == [
            (0, 0, 0, 0),
            (*LEGS.colour("femur_right"), 115),
        ]
        (outline,) = axes.collections
        assert len(outline.get_segments()) == 16  # the perimeter of 4 x 4 voxels
        assert outline.get_colors()[0][:3] == pytest.approx([part / 255 for part in LEGS.colour("femur_left")])

    def test_the_view_is_cropped_to_what_is_labelled_but_shows_every_label(self):
        array = np.zeros((100, 100, 2), dtype=np.uint8)
        array[40:60, 40:60] = 1
        axes = overlay(None, volume(array), label_map=LEGS).axes[0]
        assert axes.get_xlim()[1] == 20 + 2 * 8  # a margin of 8 mm on either side

    def test_ignored_voxels_are_hatched_and_neither_filled_nor_outlined(self):
        reference, prediction = labels(), labels()
        reference[:6] = 255
        figure = overlay(None, volume(prediction), volume(reference), label_map=LEGS)
        assert "hatched: not labelled" in legend(figure)
        assert "femur_left" not in legend(figure)  # it lies in the ignored part alone
        assert "femur_right" in legend(figure)
        assert any(
            collection.get_paths() and getattr(collection, "hatches", None) for collection in figure.axes[0].collections
        )
        assert pixels(figure).std() > 0

    def test_many_structures_are_counted_in_the_legend(self):
        many = LabelMap({key: f"muscle {key}" for key in range(1, 41)})
        array = np.arange(1, 41, dtype=np.uint8).reshape(8, 5, 1)
        figure = overlay(None, volume(array), label_map=many)
        assert len(legend(figure)) == 25
        assert legend(figure)[-1] == "and 16 more"

    @pytest.mark.parametrize(
        ("image", "shape"),
        [
            (np.full((12, 10, 8), np.nan, np.float32), (12, 10, 8)),
            (np.zeros((12, 10, 8, 2), np.int16), (12, 10, 8)),
            (np.ones((12, 10, 1), bool), (12, 10, 1)),
            (np.ones((1, 10, 8)), (1, 10, 8)),
            (np.ones((40, 4, 8)), (40, 4, 8)),
        ],
    )
    def test_odd_images_are_drawn(self, image, shape):
        figure = overlay(volume(image, SLAB), None, volume(labels(shape), SLAB), label_map=LEGS, title=HOSTILE)
        assert pixels(figure).std() > 0

    def test_first_channel_is_shown(self):
        image = np.zeros((4, 4, 2, 2), dtype=np.float32)
        image[..., 1] = 7
        assert overlay(volume(image), None, label_map=LEGS).axes[0].images[0].get_array().max() == 0

    def test_without_patient_there_are_no_letters(self):
        figure = overlay(None, volume(labels()), label_map=LEGS, letters=False)
        assert not {text for text in texts(figure.axes[0]) if len(text) == 1}

    def test_hostile_structure_names(self):
        names = LabelMap({1: HOSTILE, 2: "_hidden"})
        figure = overlay(None, volume(labels()), label_map=names)
        assert pixels(figure).std() > 0
        assert " _hidden" in legend(figure)

    def test_different_grids_and_nothing_are_refused(self):
        with pytest.raises(ValueError, match="all on one grid"):
            overlay(volume(np.ones((12, 10, 8)), (2, 1, 1)), volume(labels()), label_map=LEGS)
        with pytest.raises(ValueError, match="needs image, labels or reference"):
            overlay(None, None, label_map=LEGS)


class Parsed(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.data, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.data.append(data)


class TestPage:
    def test_every_string_is_escaped(self):
        section = Section(HOSTILE, HOSTILE, [{HOSTILE: HOSTILE}], {HOSTILE: b"png"})
        folded = Section(HOSTILE, folded=True)
        page = html_page(HOSTILE, [section, folded])
        parsed = Parsed(page)
        assert "script" not in parsed.tags
        assert parsed.data.count(HOSTILE) == 8  # title, h1, h2, p, th, td, caption, summary
        assert dict(parsed.attributes)["alt"] == HOSTILE

    def test_pictures_are_inside(self):
        page = html_page(
            "t", [Section("s", pictures={"bytes": b"\x89PNG-1", "figure": training_curves({"loss": [1.0, 2.0]})})]
        )
        sources = [value for name, value in Parsed(page).attributes if name == "src"]
        decoded = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
        assert decoded[0] == b"\x89PNG-1"
        assert decoded[1].startswith(b"\x89PNG\r\n")
        assert "http" not in page

    def test_tables(self):
        rows = [
            {"name": "a", "value": 0.12345, "n": 3},
            {"name": "b", "value": math.nan, "n": 1234},
            {"name": "c", "value": 512.25},
        ]
        page = html_page("t", [Section("s", table=rows)])
        for cell in ("0.123", "–", "512.2", "1234", '<td class="number"></td>'):
            assert cell in page
        assert page.count("<tr>") == 4

    def test_notice_and_folded(self):
        page = html_page("t", [Section("Reduced", "two\n\nparagraphs", notice=True), Section("More", folded=True)])
        assert "<section class=notice><h2>Reduced</h2>" in page
        assert page.count("<p>") == 2
        assert "<details><summary>More</summary>" in page
