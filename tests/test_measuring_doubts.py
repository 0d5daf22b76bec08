"""Fat fractions, sides, populations, second opinions and flags, by hand arithmetic and closed forms."""

import math

import numpy as np
import pytest
from measuring_phantoms import cylinder, grid, labels, rotation, spheroid

from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap
from tfmuscle.measuring import (
    FatImages,
    Images,
    agreement,
    asymmetry,
    find_flags,
    measure_structures,
    noise_mean,
    population,
    read_population,
    split_sides,
)
from tfmuscle.measuring.population import FEATURES, limit, robust_z
from tfmuscle.preprocessing.dixon import fat_fraction
from tfmuscle.volume import Geometry, Volume

LEGS = LabelMap({1: "soleus_left", 2: "soleus_right", 3: "psoas_left", 4: "psoas_right"})


def block(*places, shape=(40, 12, 20), step=1.0):
    """Labels: (id, box) each, in RAS with x growing to the right; index 0 is at x = -20 mm."""
    array = np.zeros(shape, np.uint8)
    for key, box in places:
        array[tuple(slice(*span) for span in box)] = key
    affine = np.diag([step, step, step, 1.0])
    affine[0, 3] = -step * shape[0] / 2
    return Volume(array, Geometry(shape, affine))


def both_legs():
    return block(
        (1, ((4, 10), (3, 9), (2, 8))),
        (3, ((4, 10), (3, 9), (10, 16))),
        (2, ((30, 36), (3, 9), (2, 8))),
        (4, ((30, 36), (3, 9), (10, 16))),
    )


class TestFat:
    def images(self, water, fat, noise=None):
        geometry = Geometry(water.shape, np.eye(4))
        fraction = fat_fraction(Volume(water, geometry), Volume(fat, geometry)).array
        return FatImages(fraction, water, fat, noise)

    def measured(self, array, images, named=None):
        volume = Volume(array, Geometry(array.shape, np.eye(4)))
        return measure_structures(volume, LabelMap({1: "body"}), images=Images(named or {}, images))[0]

    def test_mean_of_voxels_and_ratio_of_sums(self):
        array = np.zeros((6, 6, 6), np.uint8)
        array[1:5, 1:5, 1:3] = 1  # two slices of 16 voxels
        water, fat = np.full((6, 6, 6), 100.0), np.full((6, 6, 6), 100.0)
        water[:, :, 1], fat[:, :, 1] = 90, 10  # 10 % of 100
        water[:, :, 2], fat[:, :, 2] = 150, 150  # 50 % of 300
        fat_of = self.measured(array, self.images(water, fat)).fat
        assert fat_of.mean == pytest.approx((10 + 50) / 2)
        assert fat_of.of_sums == pytest.approx(100 * (10 + 150) / (100 + 300))
        assert (fat_of.median, fat_of.sd, fat_of.with_signal) == pytest.approx((30, 20, 100))
        assert math.isnan(fat_of.floor)

    def test_voxels_without_signal_are_left_out_of_means_and_told(self):
        array = np.zeros((6, 6, 6), np.uint8)
        array[1:5, 1:5, 1:5] = 1
        water, fat = np.full((6, 6, 6), 75.0), np.full((6, 6, 6), 25.0)
        water[1:5, 1:5, 1], fat[1:5, 1:5, 1] = 1, 3  # far below 5 % of 100
        found = self.measured(array, self.images(water, fat))
        assert (found.fat.mean, found.fat.with_signal) == pytest.approx((25, 75))
        assert found.fat.of_sums == pytest.approx(100 * (48 * 25 + 16 * 3) / (48 * 100 + 16 * 4))
        (flag,) = find_flags([found], LabelMap({1: "body"}))
        assert (flag.kind, flag.what) == ("fat", "25 % of its voxels have no signal and no fat fraction")

    def test_no_signal_at_all_is_undefined(self):
        array = np.zeros((6, 6, 6), np.uint8)
        array[1:3] = 1
        water, fat = np.zeros((6, 6, 6)), np.zeros((6, 6, 6))
        water[4:] = 10
        fat_of = self.measured(array, self.images(water, fat)).fat
        assert math.isnan(fat_of.mean) and math.isnan(fat_of.of_sums) and fat_of.with_signal == 0

    def test_noise_is_found_where_nothing_is(self):
        rng = np.random.default_rng(3)
        shape, sd = (40, 40, 40), 4.0
        water, fat = (np.hypot(*rng.normal(0, sd, (2, *shape))) for _ in range(2))
        body = np.zeros(shape, bool)
        body[10:30, 10:30, 10:30] = True
        water[body] = np.hypot(500 + rng.normal(0, sd, body.sum()), rng.normal(0, sd, body.sum()))
        images = self.images(water, fat)
        noise = noise_mean(images.fat, images.fraction)
        assert noise == pytest.approx(sd * math.sqrt(math.pi / 2), rel=0.03)
        found = self.measured(body.astype(np.uint8), self.images(water, fat, noise))
        # a muscle without any fat shows the floor, which is what a Rayleigh mean makes of 500
        assert found.fat.floor == pytest.approx(100 * sd * math.sqrt(math.pi / 2) / 505, rel=0.03)
        assert found.fat.of_sums == pytest.approx(found.fat.floor, rel=0.03)
        (flag,) = find_flags([found], LabelMap({1: "body"}))
        assert flag.what == "fat fraction 1.0 %, while noise alone would show up to 1.0 %"

    def test_air_that_was_set_to_zero_tells_no_noise(self):
        water, fat = np.zeros((20, 20, 20)), np.zeros((20, 20, 20))
        water[5:15] = 100
        images = self.images(water, fat)
        assert noise_mean(fat, images.fraction) is None

    def test_intensities_are_those_of_numpy(self):
        rng = np.random.default_rng(5)
        image = rng.normal(50, 9, (8, 8, 8))
        array = (rng.random((8, 8, 8)) > 0.5).astype(np.uint8)
        image[0, 0, 0] = np.nan
        row = self.measured(array, None, {"image": image}).row()
        inside = image[(array == 1) & np.isfinite(image)]
        assert row["image_mean"] == pytest.approx(inside.mean())
        assert row["image_sd"] == pytest.approx(inside.std())
        assert [row[f"image_p{p}"] for p in (5, 50, 95)] == pytest.approx(np.percentile(inside, (5, 50, 95)).tolist())


class TestAsymmetry:
    def test_by_hand(self):
        rows = [
            {"structure": "soleus_left", "cut": "", "volume_ml": 110.0, "ff_mean": 12.0},
            {"structure": "soleus_right", "cut": "I", "volume_ml": 90.0, "ff_mean": 15.0},
            {"structure": "spine", "cut": "", "volume_ml": 5.0, "ff_mean": 1.0},
            {"structure": "psoas_right", "cut": "", "volume_ml": 5.0, "ff_mean": 1.0},
        ]
        (pair,) = asymmetry(rows)
        assert (pair["structure"], pair["cut"]) == ("soleus", "right")
        assert (pair["volume_ml_asymmetry"], pair["ff_mean_asymmetry"]) == (pytest.approx(20.0), pytest.approx(-3.0))
        assert "length_mm_asymmetry" not in pair

    def test_no_structure(self):
        assert asymmetry([]) == []

    def test_of_ellipsoids(self):
        geometry = grid((140, 60, 90), (1.0, 1.0, 1.0))
        left, right = spheroid(geometry, 22, 80, centre=(-35, 0, 0)), spheroid(geometry, 20, 70, centre=(35, 0, 0))
        volume = Volume(labels(left, right), geometry)
        found = measure_structures(volume, LabelMap({1: "soleus_left", 2: "soleus_right"}))
        (pair,) = asymmetry([one.row() for one in found])
        large, small = 22**2 * 80, 20**2 * 70
        assert pair["volume_ml_asymmetry"] == pytest.approx(200 * (large - small) / (large + small), abs=1)
        assert pair["max_area_cm2_asymmetry"] == pytest.approx(200 * (22**2 - 20**2) / (22**2 + 20**2), abs=1)
        assert pair["length_mm_asymmetry"] == pytest.approx(200 * 10 / 150, abs=1)


def person(subject, volume, **other):
    row = {"subject": subject, "structure": "soleus_left", "cut": ""} | dict.fromkeys(FEATURES, 1.0)
    return row | {"volume_ml": volume} | other


class TestPopulation:
    def test_robust_z_by_hand(self):
        values = np.array([8.0, 9.0, 10.0, 11.0, 100.0])  # median 10, distances 2 1 0 1 90: MAD 1
        assert robust_z(13.0, values) == pytest.approx(3 / 1.4826)
        assert robust_z(10.5, np.full(5, 10.0)) == pytest.approx(0.5 / 0.2)  # no spread: 2 % of the median
        assert robust_z(0.0, np.zeros(5)) == 0 and robust_z(1.0, np.zeros(5)) == math.inf

    def test_far_is_told_with_figures(self):
        volumes = [90, 92, 94, 96, 98, 102, 104, 106, 108, 110]  # median 100, distances 2 2 4 4 6 6 8 8 10 10: MAD 6
        people = population([person(f"p{n}", volume) for n, volume in enumerate(volumes)])
        (one,) = people.unusual(person("new", 170.0), subject="new")
        assert (one.feature, one.median, one.people) == ("volume_ml", 100, 10)
        assert one.z == pytest.approx(70 / (1.4826 * 6))
        assert people.unusual(person("new", 160.0), subject="new") == []  # z 6.7, and among ten the limit is 7.4

    def test_two_of_a_thousand_normal_people_are_far(self):
        rng = np.random.default_rng(4)
        for people in (10, 25):
            others, new = rng.normal(100, 10, (20_000, people)), rng.normal(100, 10, 20_000)
            middle = np.median(others, axis=1)
            spread = 1.4826 * np.median(np.abs(others - middle[:, None]), axis=1)
            share = np.mean(np.abs(new - middle) / spread > limit(people))
            assert share == pytest.approx(0.002, abs=0.0012)  # 40 of 20,000 give or take 2 x 6, and the fit's error

    def test_sides_count_together_and_persons_once(self):
        rows = [person(f"p{n}", 100.0 + n) for n in range(9)]
        rows += [person(f"p{n}", 100.0 + n) | {"structure": "soleus_right"} for n in range(9)]
        assert population(rows).unusual(person("new", 900.0), subject="new") == []  # 18 values of nine people
        rows.append(person("p9", 104.0))
        assert population(rows).unusual(person("new", 900.0) | {"structure": "soleus_right"}, subject="new")

    def test_the_subject_itself_and_cut_structures_do_not_count(self):
        rows = [person(f"p{n}", 100.0 + n) for n in range(10)]
        assert population(rows).unusual(person("p0", 900.0), subject="p0") == []
        rows.append(person("p10", 100.0, cut="I"))
        assert population(rows).unusual(person("p0", 900.0), subject="p0") == []
        assert population(rows).unusual(person("new", 900.0, cut="S"), subject="new") == []

    def test_other_structures_are_not_compared(self):
        rows = [person(f"p{n}", 100.0 + n) for n in range(10)]
        assert population(rows).unusual(person("new", 9.0) | {"structure": "psoas_left"}, subject="new") == []

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("subject,structure\na,b\n", "no column cut, fill, length_mm, max_area_cm2, slenderness, volume_ml"),
            ("subject\n", "no row in it"),
            ("subject,structure,cut,volume_ml,length_mm,max_area_cm2,fill,slenderness\na,b,,x,1,1,1,1\n", "'x'"),
            ("\x00", "no usable table of a population"),
        ],
    )
    def test_no_table_of_a_population(self, tmp_path, text, why):
        (tmp_path / "cohort.csv").write_text(text)
        with pytest.raises(DataError, match=why):
            read_population(tmp_path / "cohort.csv")

    def test_no_file(self, tmp_path):
        with pytest.raises(DataError, match="there is no such file"):
            read_population(tmp_path / "cohort.csv")


class TestAgreement:
    def test_by_hand(self):
        mine, theirs = block((1, ((0, 4), (0, 4), (0, 4)))), block((7, ((0, 4), (0, 4), (2, 7))))
        theirs.array[10, 10, 10] = 9
        (one,) = agreement(mine, LabelMap({1: "soleus"}), theirs, LabelMap({7: "soleus", 9: "psoas"}), 2)
        assert one.dice == pytest.approx(2 * 32 / (64 + 80))  # slices 2 and 3 are shared
        assert one.volume_ml == pytest.approx((0.064, 0.080))
        assert one.worst == (0, 1, 4)  # all differ by 16 voxels: the lowest first

    def test_only_one_has_it(self):
        mine, theirs = block((1, ((0, 2), (0, 2), (0, 2)))), block()
        (one,) = agreement(mine, LabelMap({1: "a", 2: "b"}), theirs, LabelMap({1: "a", 2: "b"}), 0)
        assert (one.structure, one.dice, one.worst) == ("a", 0.0, (0, 1))

    def test_unknown_counts_for_nothing(self):
        mine, theirs = block((1, ((0, 4), (0, 4), (0, 4)))), block((1, ((0, 4), (0, 4), (0, 4))))
        theirs.array[0:2] = 255
        (one,) = agreement(mine, LabelMap({1: "a"}), theirs, LabelMap({1: "a"}, ignore=255), 2)
        assert (one.dice, one.volume_ml[0]) == (1.0, pytest.approx(0.032))

    def test_other_grids_are_refused(self):
        with pytest.raises(ValueError, match="different grids; resample"):
            agreement(block(), LEGS, block(step=2.0), LEGS, 2)


class TestSplitSides:
    table = LabelMap({1: "soleus", 3: "psoas", 5: "gracilis_left"}, ignore=9)

    def legs(self):
        volume = both_legs()
        volume.array[volume.array == 2], volume.array[volume.array == 4] = 1, 3
        volume.array[6, 6, 6], volume.array[33, 0, 0] = 5, 9
        return volume

    @pytest.mark.parametrize("code", ["RAS", "LPS", "SPL", "AIR"])
    def test_every_voxel_goes_to_its_side(self, code):
        volume = self.legs().reoriented(code)
        parted, table = split_sides(volume, self.table)
        assert table.names == {
            0: "background", 1: "soleus_left", 3: "psoas_left", 5: "gracilis_left",
            10: "soleus_right", 11: "psoas_right",
        }  # fmt: skip
        x = volume.geometry.world(np.moveaxis(np.indices(volume.array.shape), 0, -1))[..., 0]
        for old, left, right in ((1, 1, 10), (3, 3, 11)):
            np.testing.assert_array_equal(parted.array == left, (volume.array == old) & (x < 0))
            np.testing.assert_array_equal(parted.array == right, (volume.array == old) & (x > 0))
        np.testing.assert_array_equal(parted.array == 5, volume.array == 5)
        np.testing.assert_array_equal(parted.array == 9, volume.array == 9)

    def test_oblique_legs_of_unlike_size(self):
        geometry = grid((160, 70, 80), (1.5, 1.5, 2.0), rotation(5, 12, 8))
        left = cylinder(geometry, 30, 70, centre=(-42, 0, 0))
        right = cylinder(geometry, 18, 40, centre=(28, 0, 0))
        parted, table = split_sides(Volume(labels(left | right), geometry), LabelMap({1: "thigh"}))
        np.testing.assert_array_equal(parted.array == table.id_of("thigh_left"), left)
        np.testing.assert_array_equal(parted.array == table.id_of("thigh_right"), right)

    def test_one_leg_is_not_parted(self):
        geometry = grid((80, 80, 20), (1.0, 1.0, 2.0))
        volume = Volume(labels(cylinder(geometry, 30, 30)), geometry)
        with pytest.raises(ValueError, match="the labels lie in one heap; leave the sides as they are"):
            split_sides(volume, LabelMap({1: "thigh"}))

    def test_nothing_to_part(self):
        with pytest.raises(ValueError, match="all structures have a side by name"):
            split_sides(both_legs(), LEGS)


class TestFlags:
    def flags(self, volume, table=LEGS, **options):
        return find_flags(measure_structures(volume, table), table, **options)

    def test_nothing_to_doubt(self):
        assert self.flags(both_legs()) == []

    def test_missing(self):
        volume = both_legs()
        volume.array[volume.array == 4] = 0
        (flag,) = self.flags(volume)
        assert (flag.structure, flag.kind, flag.slices) == ("psoas_right", "missing", ())

    def test_pieces_and_where_they_are(self):
        volume = both_legs()
        volume.array[4:6, 3:5, 18:20] = 3  # touches the upper edge too
        flags = {flag.kind: flag for flag in self.flags(volume)}
        assert flags["pieces"].structure == "psoas_left" and flags["pieces"].slices == (18,)
        assert flags["pieces"].what == "2 pieces; 3.6 % of it is not in the largest (0.01 ml)"  # 8 of 224 voxels
        assert flags["cut"].what == "touches the upper edge of the scan; its size is that of a part"
        assert flags["cut"].slices == (19,)

    def test_both_limbs_under_one_name(self):
        volume = both_legs()
        volume.array[volume.array == 2] = 1
        (flag,) = self.flags(volume, LabelMap({1: "soleus", 3: "psoas_left", 4: "psoas_right"}))
        assert flag.what.endswith("are both limbs under one name?")

    def test_a_whole_structure_on_the_wrong_side(self):
        volume = both_legs()
        left, right = volume.array == 1, volume.array == 2
        volume.array[left], volume.array[right] = 2, 1
        flags = self.flags(volume)
        assert [(flag.structure, flag.kind) for flag in flags] == [("soleus_left", "side"), ("soleus_right", "side")]
        # centres of the blocks are 26 mm apart
        assert flags[0].what.startswith("named left, but its centre lies 13 mm to the other side of the middle")

    @pytest.mark.parametrize("code", ["RAS", "LPS", "SPL", "ASL"])
    def test_sides_are_those_of_the_patient_whatever_the_axes(self, code):
        assert self.flags(both_legs().reoriented(code)) == []

    def test_mirrored_labels(self):
        volume = both_legs()
        mirrored = volume.with_array(np.ascontiguousarray(volume.array[::-1]))
        assert {flag.structure for flag in self.flags(mirrored) if flag.kind == "side"} == set(LEGS.structures)

    def test_a_piece_on_the_wrong_side(self):
        volume = both_legs()
        volume.array[32:34, 9:11, 4:7] = 1  # beside the right soleus
        flags = {flag.kind: flag for flag in self.flags(volume)}
        assert flags["side"].what == "named left, but 0.01 ml of 0.23 ml lie on the other side"
        assert flags["side"].slices == (5,)

    def test_one_leg_alone_has_no_wrong_side(self):
        volume = both_legs()
        volume.array[20:] = 0
        assert {flag.kind for flag in self.flags(volume)} == {"missing"}

    def test_disagreement(self):
        mine, theirs = both_legs(), both_legs()
        theirs.array[4:10, 3:9, 2:6] = 0  # a third of the left soleus is left
        compared = agreement(mine, LEGS, theirs, LEGS, 2)
        (flag,) = self.flags(mine, others=[("fold 2", compared)])
        assert flag.what == "Dice 0.50 with fold 2: 0.2 ml here, 0.1 ml there"
        assert (flag.kind, flag.slices) == ("disagreement", (2, 3, 4))

    def test_population(self):
        rows = []
        for number in range(10):
            structures = measure_structures(both_legs(), LEGS)
            rows += [one.row() | {"subject": f"p{number}"} for one in structures]
        volume = both_legs()
        volume.array[4:10, 9:12, 2:8] = 1  # deeper by a half, up to the edge: cut, not compared
        assert [flag.kind for flag in self.flags(volume, population=population(rows))] == ["cut"]
        volume.array[4:10, 11, 2:8] = 0
        (flag,) = self.flags(volume, population=population(rows), subject="new")
        assert flag.kind == "population" and "volume 0.288, others 0.216 (z +16.7, n=10)" in flag.what
        assert "largest area 0.48, others 0.36" in flag.what and "length" not in flag.what.split("slenderness")[0]

    def test_the_gravest_come_first(self):
        volume = both_legs()
        left, right = volume.array == 1, volume.array == 2
        volume.array[left], volume.array[right] = 2, 1
        volume.array[4:6, 3:5, 18:20] = 3
        assert [flag.kind for flag in self.flags(volume)] == ["side", "side", "pieces", "cut"]

    def test_a_muscle_cut_by_the_field_of_view(self):
        geometry = grid((40, 40, 60), (1.0, 1.0, 1.0))
        volume = Volume(labels(cylinder(geometry, 8, 80)), geometry)
        (flag,) = self.flags(volume, LabelMap({1: "soleus"}))
        assert (
            flag.what == "touches the lower edge of the scan and the upper edge of the scan; its size is that of a part"
        )
        assert flag.slices == (0, 59)
