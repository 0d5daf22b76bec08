"""A small pair of legs with four muscles, for tests of the cascade."""

from pathlib import Path

import numpy as np

from tfmuscle.files import write_json
from tfmuscle.io import write_volume
from tfmuscle.labels import SIDES, LabelMap
from tfmuscle.volume import Geometry, Volume

MUSCLES = ("rectus_femoris", "vastus_lateralis", "soleus", "popliteus")
NAMES = tuple(f"{muscle}_{side}" for muscle in MUSCLES for side in ("left", "right"))
LABEL_MAP = LabelMap(dict(enumerate(NAMES, start=1)))
SPACING = (2.0, 2.0, 4.0)
# In mm: centre (from the leg's axis outwards, forward, up) and half axes; no two overlap.
SHAPES = {
    "rectus_femoris": ((0, 14, 30), (10, 8, 36)),
    "vastus_lateralis": ((12, -6, 26), (8, 9, 30)),
    "soleus": ((0, -10, -46), (11, 10, 28)),
    "popliteus": ((2, 10, -26), (6, 5, 9)),
}
BRIGHTNESS = {"rectus_femoris": 3.0, "vastus_lateralis": 5.0, "soleus": 7.0, "popliteus": 9.0}


def legs(seed: int, *, orientation: str = "RAS", shape: tuple[int, int, int] = (64, 36, 40)) -> tuple[Volume, Volume]:
    """Returns image and labels of two legs, the left one at negative x; every person is a little different."""
    rng = np.random.default_rng(seed)
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -np.array(SPACING) * (np.array(shape) - 1) / 2
    geometry = Geometry(shape, affine)
    world = geometry.world(np.moveaxis(np.indices(shape), 0, -1))
    labels = np.zeros(shape, np.uint8)
    image = rng.normal(1.0, 0.2, shape).astype(np.float32)
    for muscle in MUSCLES:
        size, shift = rng.uniform(0.9, 1.1), rng.uniform(-2, 2, 3)
        for side, sign in (("left", -1), ("right", 1)):
            (outwards, forward, up), half = SHAPES[muscle]
            centre = np.array([sign * (30 + outwards + shift[0]), forward + shift[1], up + shift[2]])
            inside = ((world - centre) ** 2 / (np.array(half) * size) ** 2).sum(axis=-1) <= 1
            labels[inside & (labels == 0)] = LABEL_MAP.id_of(f"{muscle}_{side}")
            image[inside] += BRIGHTNESS[muscle]
    return (
        Volume(image, geometry).reoriented(orientation),
        Volume(labels, geometry).reoriented(orientation),
    )


def with_channels(image: Volume, labels: Volume) -> Volume:
    """Returns an image with one channel for each muscle, 1 inside it and 0 elsewhere."""
    inside = [np.isin(labels.array, [LABEL_MAP.id_of(f"{muscle}_{side}") for side in SIDES]) for muscle in MUSCLES]
    return image.with_array(np.stack(inside, axis=-1).astype(np.float32))


def dataset(folder: Path, *, subjects: int = 4, orientations: tuple[str, ...] = ("RAS", "LPS", "SPL", "AIR")) -> Path:
    """Writes a dataset of several such people, each in another orientation; returns its folder."""
    for number in range(subjects):
        image, labels = legs(number, orientation=orientations[number % len(orientations)])
        write_volume(folder / "imagesTr" / f"person_{number}_0000.nii.gz", image)
        write_volume(folder / "labelsTr" / f"person_{number}.nii.gz", labels)
    about = {"channel_names": {"0": "t1"}, "labels": LABEL_MAP.to_dict(), "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", about | {"numTraining": subjects})
    return folder
