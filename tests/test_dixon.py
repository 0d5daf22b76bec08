"""Fat fractions: judged by arithmetic, by phantoms that know their channels, and by another program's result."""

import numpy as np
import pytest

from tfmuscle.io import read_volume
from tfmuscle.phantom import make_phantom
from tfmuscle.preprocessing import fat_fraction, identify_water_fat
from tfmuscle.volume import Geometry, Volume

GRID = Geometry((2, 2, 1), np.eye(4))


def test_percent_of_signal_and_nan_without_signal():
    water = Volume(np.array([[[100.0], [30.0]], [[0.0], [1.0]]]), GRID)
    fat = Volume(np.array([[[0.0], [90.0]], [[50.0], [2.0]]]), GRID)
    fraction = fat_fraction(water, fat).array  # bright end 119.4 (99th percentile): signal below 6 is noise
    np.testing.assert_allclose(fraction[..., 0], [[0, 75], [100, np.nan]])
    assert fraction.dtype == np.float32


def test_integers_do_not_overflow():
    fraction = fat_fraction(
        Volume(np.full((2, 2, 1), 200, np.uint8), GRID), Volume(np.full((2, 2, 1), 200, np.uint8), GRID)
    )
    np.testing.assert_array_equal(fraction.array, 50)


def test_an_empty_scan_has_no_fraction():
    empty = Volume(np.zeros((2, 2, 1), np.int16), GRID)
    assert np.isnan(fat_fraction(empty, empty).array).all()


def test_what_cannot_be_divided():
    one = Volume(np.ones((2, 2, 1)), GRID)
    moved = Volume(np.ones((2, 2, 1)), Geometry((2, 2, 1), np.diag([2.0, 1.0, 1.0, 1.0])))
    for function in (fat_fraction, identify_water_fat):
        with pytest.raises(ValueError, match="different grids"):
            function(one, moved)
        with pytest.raises(ValueError, match="one channel each, not 2 and 1"):
            function(Volume(np.ones((2, 2, 1, 2)), GRID), one)
    with pytest.raises(ValueError, match="too thin to tell"):
        identify_water_fat(one, one)


@pytest.mark.parametrize(("kind", "orientation"), [("thigh", "SPL"), ("lower-limb", "RAS"), ("bones", "LPS")])
def test_water_is_known_by_the_fat_under_the_skin(kind, orientation):
    image = make_phantom(kind, seed=7, contrast="dixon", scale=2.0).image.reoriented(orientation)
    water, fat = (image.with_array(image.array[..., channel]) for channel in range(2))
    told, exchanged = identify_water_fat(water, fat), identify_water_fat(fat, water)
    assert (told.water, told.fat, exchanged.water) == (0, 1, 1)
    assert told.confidence == pytest.approx(exchanged.confidence, abs=1e-3) and told.confidence > 0.15


@pytest.mark.parametrize("patient", ["Thigh_001", "Thigh_002"])
def test_wasted_thighs_of_patients(data_dir, patient):
    """By eye `_0000` is fat (bright rim and marrow) and `_0001` water; the muscles of both are half fat."""
    first, second = (read_volume(data_dir / f"thigh_fat_water/{patient}_000{number}.nii.gz") for number in range(2))
    told = identify_water_fat(first, second)
    assert told.water == 1 and told.confidence > 0.1


def test_against_another_program(data_dir):
    """Same water and fat, so only rounding may differ: 0.01 percentage points wherever there is signal."""
    folder = data_dir / "leg_dixon/siemens_hand/reference"
    water, fat, reference = (read_volume(folder / f"{name}.nii.gz") for name in ("water", "fat", "fatfraction"))
    fraction = fat_fraction(water, fat).array
    signal = np.isfinite(fraction)
    assert 0.2 < signal.mean() < 0.5  # the hand fills a third of the view
    np.testing.assert_allclose(fraction[signal], reference.array[signal], atol=0.01)
    assert identify_water_fat(water, fat).water == 0
