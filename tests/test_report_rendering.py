"""Pictures of labels against cases counted by hand, and against balls whose place in the patient is known."""

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tfmuscle.io import read_label_image
from tfmuscle.labels import LabelMap
from tfmuscle.report import figure_png, rendering
from tfmuscle.report.rendering import LONGEST_SIDE, VIEWS, project, shade
from tfmuscle.volume import Geometry, Volume

HOSTILE = "$x^2$ & _ümlaut 図"
LEGS = LabelMap({1: "soleus_left", 2: "soleus_right", 3: "femur_left"}, ignore=255)


def rotation(degrees_z, degrees_x):
    z, x = np.deg2rad([degrees_z, degrees_x])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    return about_z @ about_x


def affine(matrix, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = np.asarray(matrix) * spacing, origin
    return whole


def volume(array, spacing=(1.0, 1.0, 1.0)):
    return Volume(array, Geometry(array.shape, affine(np.eye(3), spacing)))


@pytest.fixture
def person():
    """RAS, 4 x 3 x 2 mm: 1 on the left in front, 3 behind it, 2 on the right at the back, above only."""
    array = np.zeros((4, 3, 2), np.uint8)
    array[0, 2], array[0, 0], array[3, 0, 1] = 1, 3, 2
    return volume(array)


class TestProject:
    # front: columns run from the patient's right (x = 3) to the left (x = 0), where 1 hides 3; row 0 is above
    front = [[2, 0, 0, 1], [0, 0, 0, 1]]
    back = [[3, 0, 0, 2], [3, 0, 0, 0]]

    @pytest.mark.parametrize("code", ["RAS", "LPS", "SPL", "PIR", "ASL", "LAS"])  # LAS, SPL: left-handed grids
    def test_what_is_seen_does_not_depend_on_the_order_of_axes(self, person, code):
        turned = person.reoriented(code)
        np.testing.assert_array_equal(project(turned, "front").labels, self.front)
        np.testing.assert_array_equal(project(turned, "back").labels, self.back)

    def test_depth_is_counted_from_what_lies_foremost(self, person):
        gap = np.nan  # y = 2 is the foremost plane, 2 lies at y = 0; from the back both 3 and 2 lie in the first plane
        np.testing.assert_allclose(project(person, "front").depth_mm, [[2, gap, gap, 0], [gap, gap, gap, 0]])
        np.testing.assert_allclose(project(person, "back").depth_mm, [[0, gap, gap, 0], [0, gap, gap, gap]])

    def test_thick_slices_keep_their_proportions(self, person):
        thick = volume(person.array, (1.0, 1.0, 4.0))
        np.testing.assert_array_equal(project(thick, "front").labels, np.repeat(self.front, 4, axis=0))

    def test_the_picture_may_be_finer_or_coarser_than_the_voxels(self, person):
        fine = project(person, "front", step_mm=0.5)
        np.testing.assert_array_equal(fine.labels, np.kron(self.front, np.ones((2, 2), int)))
        assert fine.depth_mm[0, 0] == 2.0

    def test_unlabelled_is_looked_through(self, person):
        array = person.array.copy()
        array[:, 2][array[:, 2] == 0] = 255
        np.testing.assert_array_equal(project(person.with_array(array), "front", ignore=255).labels, self.front)
        assert (project(person.with_array(array), "front").labels == 255).any()

    def test_nothing_is_labelled(self, person):
        for array in (np.zeros_like(person.array), np.full_like(person.array, 255)):
            look = project(person.with_array(array), "front", ignore=255)
            assert look.labels.tolist() == [[0]] and np.isnan(look.depth_mm).all()

    def test_the_picture_is_cut_to_the_labels_and_never_longer_than_allowed(self):
        array = np.zeros((5, 5, 2 * LONGEST_SIDE), np.uint8)
        array[2, 2, 1:-1] = 7
        look = project(volume(array), "back")
        assert look.labels.shape == (LONGEST_SIDE, 1) and (look.labels == 7).all()

    def test_large_ids_and_memory_order(self, person):
        array = np.asfortranarray(person.array.astype(np.uint32) * 1_000_000_000)
        np.testing.assert_array_equal(project(person.with_array(array), "front").labels // 1_000_000_000, self.front)

    @pytest.mark.parametrize(
        ("matrix", "spacing"),
        [
            (rotation(25, 0), (1.0, 1.0, 1.0)),
            (rotation(-20, 30), (0.8, 0.9, 2.5)),
            (rotation(10, -15) @ np.diag([-1, 1, 1]), (1.0, 1.5, 1.0)),  # left-handed
            (rotation(35, 20)[:, [2, 0, 1]], (2.0, 1.0, 1.0)),
        ],
        ids=["turned", "oblique", "flipped", "axes exchanged"],
    )
    @pytest.mark.parametrize("view", VIEWS)
    def test_balls_stand_where_the_patient_has_them(self, matrix, spacing, view):
        shape = np.ceil(120 / np.array(spacing)).astype(int)
        whole = affine(matrix, spacing)
        whole[:3, 3] = -whole[:3, :3] @ ((shape - 1) / 2)
        grid = Geometry(tuple(shape), whole)
        world = grid.world(np.moveaxis(np.indices(shape), 0, -1))
        right, left, radius = np.array([22.0, 12.0, 15.0]), np.array([-18.0, -9.0, -11.0]), 11.0
        array = np.zeros(shape, np.uint8)
        array[np.linalg.norm(world - right, axis=-1) <= radius] = 1
        array[np.linalg.norm(world - left, axis=-1) <= radius] = 2
        look = project(Volume(array, grid), view)
        sign = 1 if view == "front" else -1  # seen from the front columns run to the left, depth to the back
        places = [np.argwhere(look.labels == key).mean(axis=0) * look.step_mm for key in (1, 2)]
        tolerance = 0.5 * max(spacing)  # a ball of voxels is off by a part of a voxel
        assert places[0] - places[1] == pytest.approx([-(right - left)[2], -sign * (right - left)[0]], abs=tolerance)
        depths = [np.nanmin(np.where(look.labels == key, look.depth_mm, np.nan)) for key in (1, 2)]
        # the foremost voxel centre of a ball lies up to a voxel's diagonal behind its rim
        assert depths[0] - depths[1] == pytest.approx(-sign * (right - left)[1], abs=1.5 * max(spacing))
        area = [(look.labels == key).sum() * look.step_mm**2 for key in (1, 2)]
        assert area == pytest.approx([np.pi * radius**2] * 2, rel=0.12)  # the rim is half a voxel wide

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"view": "left"}, "view is 'left'; choose from front, back"),
            ({"view": "front", "step_mm": 0.0}, "step_mm is 0.0; a length in mm"),
        ],
    )
    def test_refused(self, person, options, message):
        with pytest.raises(ValueError, match=message):
            project(person, **options)


def test_a_real_left_leg(data_dir):
    labels = read_label_image(data_dir / "visible_human" / "VHF_Left_labels_1mm.nii.gz").reoriented("RAS")
    coarse = Volume(labels.array[::3, ::3, ::3], Geometry(labels.array[::3, ::3, ::3].shape, np.diag([3, 3, 3, 1])))
    front, back = (project(coarse, view).labels for view in VIEWS)
    size = [{key: np.count_nonzero(look == key) for key in (12, 25, 36, 39)} for look in (front, back)]
    assert size[0][39] > 50 > size[1][39]  # the patella, rectus femoris and gluteus maximus
    assert size[0][25] > 10 * size[1][25] and size[1][12] > 3 * size[0][12]
    medial, lateral = (np.argwhere(front == key).mean(axis=0) for key in (15, 34))  # gracilis, vastus lateralis
    assert lateral[1] > medial[1] + 20  # the outside of a left leg lies on the right of the picture
    assert np.argwhere(front == 39)[:, 0].max() < np.argwhere(front == 37)[:, 0].mean()  # rows go down to the tibia


class TestShade:
    red = to_rgb("#c04020")

    def test_a_wall_that_faces_the_viewer_has_its_colour(self):
        picture = shade(project(volume(np.ones((20, 4, 20), np.uint8)), "front"), {1: self.red})
        np.testing.assert_allclose(picture[2:-2, 2:-2], np.broadcast_to(self.red, (16, 16, 3)), atol=1e-6)
        np.testing.assert_allclose(picture[-1, 5], 0.62 * picture[5, 5], rtol=1e-6)  # a line parts it from nothing

    def test_the_background_is_white(self, person):
        picture = shade(project(person, "front"), dict.fromkeys((1, 2, 3), self.red))
        assert (picture[0, 1:3] == 1).all() and (picture[0, 0] < 1).all()

    def test_light_falls_from_above(self):
        y, z = np.indices((30, 30))
        up, down = np.zeros((2, 30, 30, 30), np.uint8)
        up[:, y + z < 30] = 1  # recedes towards the top: y is lower the higher z, as a slope that looks up
        down[:, y - z < 0] = 1
        looks = [project(volume(array), "front") for array in (up, down)]
        light, dark = (shade(look, {1: self.red})[12:18, 12:18].mean() for look in looks)
        wall = np.mean(self.red)
        assert dark < 0.85 * wall < wall < light

    def test_structures_are_parted_by_a_line(self):
        array = np.ones((20, 2, 20), np.uint8)
        array[10:] = 2
        look = project(volume(array), "front")
        picture = shade(look, {1: self.red, 2: self.red})[10]
        edge = int(np.flatnonzero(np.diff(look.labels[10].astype(int)))[0])
        np.testing.assert_allclose(picture[edge], 0.62 * picture[edge - 3], rtol=1e-6)

    def test_an_id_without_colour(self, person):
        with pytest.raises(ValueError, match=r"id 1 has no colour; there are \[2, 3\]"):
            shade(project(person, "front"), {2: self.red, 3: self.red})


class TestRendering:
    def legs(self):
        array = np.zeros((40, 12, 60), np.uint8)
        array[2:18, :, 5:55], array[22:38, :, 5:55] = 1, 2
        array[8:12, 4:8, 20:40] = 3  # inside of the left one
        array[19, :, :] = 255
        return volume(array)

    def test_letters_scale_and_views(self):
        figure = rendering(self.legs(), label_map=LEGS, title=HOSTILE)
        front, back = figure.axes
        assert [axes.get_title() for axes in figure.axes] == [
            "front (seen from anterior)",
            "back (seen from posterior)",
        ]
        for axes, order in ((front, "RL"), (back, "LR")):
            letters = {text.get_text(): text.get_position()[0] for text in axes.texts}
            assert letters[order[0]] < 0.5 < letters[order[1]]
            assert "10 mm" in letters
            (bar,) = axes.lines
            assert np.ptp(bar.get_xdata()) == 10.0
        assert "not seen from outside: femur_left" in figure.get_suptitle()
        assert matplotlib.image.imread(io.BytesIO(figure_png(figure, dpi=50)), format="png").std() > 0

    def test_each_structure_has_its_colour_and_the_patients_right_is_on_the_left(self):
        figure = rendering(self.legs(), label_map=LEGS, views=("front",))
        picture = np.asarray(figure.axes[0].images[0].get_array())
        middle = picture[picture.shape[0] // 2]
        for column, name in ((8, "soleus_right"), (-8, "soleus_left")):
            np.testing.assert_allclose(middle[column], np.array(LEGS.colour(name)) / 255, atol=0.01)

    def test_numbers_and_shared_names(self):
        shared = {"soleus_left": "soleus", "soleus_right": "soleus"}
        figure = rendering(self.legs(), label_map=LEGS, views=("front",), shown_as=shared)
        (entry,) = figure.legends[0].get_texts()
        assert entry.get_text() == "1  soleus"
        assert figure.legends[0].get_patches()[0].get_facecolor()[:3] == pytest.approx(
            np.array(LEGS.colour("soleus_left")) / 255
        )
        numbers = [text.xy for text in figure.axes[0].texts if text.get_text() == "1"]
        # middles of the legs, 4 mm or 5 mm from the border of the cut picture 36 mm wide and 50 mm high
        assert sorted(x for x, _ in numbers) == pytest.approx([8, 28], abs=1)

    def test_no_room_no_number(self):
        array = np.zeros((60, 4, 60), np.uint8)
        array[:, :, :30], array[30, 3, 30:] = 1, 2
        figure = rendering(volume(array), label_map=LEGS, views=("front",))
        assert [text.get_text() for text in figure.axes[0].texts if text.get_text().isdigit()] == ["1"]

    def test_nothing_to_draw(self):
        figure = rendering(volume(np.zeros((3, 3, 3), np.uint8)), label_map=LEGS)
        assert "nothing is labelled" in {text.get_text() for text in figure.axes[0].texts}
        assert figure_png(figure, dpi=40)

    def test_hostile_names(self):
        names = LabelMap({1: HOSTILE, 2: "../x"})
        array = self.legs().array
        figure = rendering(volume(np.where(array < 3, array, 0)), label_map=names, title=HOSTILE)
        assert figure_png(figure, dpi=40)

    def test_an_id_without_name(self):
        with pytest.raises(ValueError, match="id 9 has no colour"):
            rendering(volume(np.full((3, 3, 3), 9, np.uint8)), label_map=LEGS)
