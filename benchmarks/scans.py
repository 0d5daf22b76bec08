"""Synthetic scans of a limb for the benchmarks: as large and as hard to compress as real ones, and of no patient.

A limb of twelve bent elliptic structures, a coil's bias field, and the noise of a magnitude image, also in the air;
int16, gzip. Scan number n is made with seed n, so that every run sees the same files.
"""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SPACING = (3.0, 0.8, 0.8)
"""Distance between slices, rows and columns in mm."""
NUM_STRUCTURES = 12


def make_scans(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Writes `count` scans `(slices, rows, columns)` with labels in nnU-Net's layout; existing ones stay."""
    names = {"background": 0} | {f"structure_{number}": number for number in range(1, NUM_STRUCTURES + 1)}
    about = {"channel_names": {"0": "T1"}, "labels": names, "numTraining": count, "file_ending": ".nii.gz"}
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        paths = [
            folder / "imagesTr" / f"scan_{number:03d}_0000.nii.gz",
            folder / "labelsTr" / f"scan_{number:03d}.nii.gz",
        ]
        if all(path.exists() for path in paths):
            continue
        for array, path in zip(_scan(shape, number), paths, strict=True):
            affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
            nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
    (folder / "dataset.json").write_text(json.dumps(about))


def _scan(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns image int16 and labels uint8 `(slices, rows, columns)`."""
    random = np.random.default_rng(seed)
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape[1:])
    y, x = y[:, np.newaxis], x[np.newaxis]
    turns = random.uniform(0, 2 * np.pi, NUM_STRUCTURES)
    signal = random.uniform(150, 700, NUM_STRUCTURES + 2).astype(np.float32)
    image, labels = np.empty(shape, np.int16), np.zeros(shape, np.uint8)
    for z in range(shape[0]):
        along = z / max(shape[0] - 1, 1)
        limb = (x / 0.8) ** 2 + (y / 0.7) ** 2 < (0.8 + 0.2 * np.sin(3 * along + seed)) ** 2
        clean = np.where(limb, signal[-1], np.float32(0))
        for number, turn in enumerate(turns):
            radius, angle = 0.28 + 0.15 * (number % 3) / 2, 2 * np.pi * number / NUM_STRUCTURES + 0.5 * along
            centre_x, centre_y = 1.2 * radius * np.cos(angle), 1.2 * radius * np.sin(angle)
            u = (x - centre_x) * np.cos(turn) + (y - centre_y) * np.sin(turn)
            v = (y - centre_y) * np.cos(turn) - (x - centre_x) * np.sin(turn)
            inside = limb & ((u / 0.13) ** 2 + (v / 0.08) ** 2 < 1 + 0.3 * np.sin(5 * along + number))
            labels[z][inside], clean[inside] = number + 1, signal[number]
        clean *= 1 + 0.25 * x * np.cos(along) - 0.2 * y
        noise = random.standard_normal((2, *shape[1:]), dtype=np.float32) * 12
        image[z] = np.hypot(clean + noise[0], noise[1])
    return image, labels
