"""Raw tracked frames: three are drawn, `propagate` labels the others, `compound` puts the labels in space."""

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from test_io_tracked import numbers, write_sequence

from tfmuscle.cli import tfmuscle_group
from tfmuscle.files import write_json
from tfmuscle.io import read_volume

RADII, CENTRE, COUNT = (7.0, 5.0, 11.0), (10.0, 12.0, 14.0), 29


def ran(*words):
    result = CliRunner().invoke(tfmuscle_group, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def sweep(tmp_path):
    """Frames of 50 x 42 pixels of 0.5 mm, 1 mm apart and each turned by a degree more, through a bright ellipsoid."""
    rows, columns = np.meshgrid(np.arange(50), np.arange(42), indexing="ij")
    poses = []
    for number in range(COUNT):
        angle = np.radians(number - COUNT // 2)
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        pose = np.eye(4)
        pose[:3, :3], pose[2, 3] = turn * (0.5, 0.5, 1), number
        poses.append(pose)
    pixels = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)], axis=-1)
    places = np.stack([pixels @ pose.T for pose in poses])[..., :3]
    inside = np.linalg.norm((places - CENTRE) / RADII, axis=-1) < 1
    frames = np.clip(np.where(inside, 170, 60) + np.random.default_rng(0).normal(0, 12, inside.shape), 0, 255)
    path = write_sequence(tmp_path / "sweep.igs.mha", frames.astype(np.uint8), transforms={"ImageToTracker": np.eye(4)})
    header, data = path.read_bytes().split(b"ElementDataFile", 1)
    lines = header.decode().splitlines()
    for number, pose in enumerate(poses):
        key = f"Seq_Frame{number:04d}_ImageToTrackerTransform ="
        lines = [f"{key} {numbers(pose)}" if line.startswith(key) else line for line in lines]
    path.write_bytes("\n".join(lines).encode() + b"\nElementDataFile" + data)
    return path, inside.transpose(2, 1, 0)


def test_three_drawn_frames_become_a_volume(sweep, tmp_path):
    path, truth = sweep
    frames, labels, volume = (tmp_path / f"{name}.nii.gz" for name in ("frames", "labels", "volume"))
    ran("sweep-frames", "-i", path, "-o", frames)
    drawn = np.zeros(truth.shape, np.uint8)
    drawn[..., [7, 14, 21]] = truth[..., [7, 14, 21]]
    nib.save(nib.Nifti1Image(drawn, nib.load(frames).affine), tmp_path / "drawn.nii.gz")
    write_json(tmp_path / "drawn.json", {"labels": {"background": 0, "soleus": 1}})
    ran("propagate", "-i", frames, "-a", tmp_path / "drawn.nii.gz", "-o", labels)
    said = ran("compound", "-i", path, "-o", volume, "--labels", labels)
    assert "soleus" in said  # the names went along
    found = read_volume(volume)
    ml = np.count_nonzero(found.array == 1) * found.geometry.voxel_volume_ml
    # 4/3 pi 7 x 5 x 11 mm is 1.613 ml; beyond the outermost drawn frames its ends are not known.
    assert ml == pytest.approx(4 / 3 * np.pi * np.prod(RADII) / 1000, rel=0.08)
    np.testing.assert_allclose(
        found.geometry.world(np.argwhere(found.array == 1)).mean(axis=0), (-10, -12, 14), atol=0.6
    )


def test_a_real_sweep(data_dir, tmp_path):
    folder = data_dir / "ultrasound" / "tracked_sweeps"
    calibration = ("--calibration", folder / "PlusDeviceSet_SpinePhantomFreehandReconstructionOnly.xml")
    sweep, frames = folder / "BoneUltrasound_L14.igs.mha", tmp_path / "frames.nii.gz"
    ran("sweep-frames", "-i", sweep, "-o", frames, *calibration)
    image = nib.load(frames)
    count = image.shape[2]
    drawn = np.zeros(image.shape, np.uint8)
    for index in (0, count // 2, count - 1):
        drawn[150:350, 100:200, index] = 1
    nib.save(nib.Nifti1Image(drawn, image.affine), tmp_path / "drawn.nii.gz")
    labels, volume = tmp_path / "labels.nii.gz", tmp_path / "volume.nii.gz"
    ran("propagate", "-i", frames, "-a", tmp_path / "drawn.nii.gz", "-o", labels)
    found = nib.load(labels)
    assert found.shape == image.shape and np.allclose(found.affine, image.affine)
    areas = np.asarray(found.dataobj).astype(bool).sum(axis=(0, 1))
    assert areas.min() > 0.5 * 200 * 100
    ran("compound", "-i", sweep, "-o", volume, "--labels", labels, *calibration, "--spacing", 0.5)
    inside = read_volume(volume)
    assert (inside.array == 1).any() and inside.geometry.spacing == pytest.approx((0.5, 0.5, 0.5))
