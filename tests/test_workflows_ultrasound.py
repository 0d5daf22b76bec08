"""From a raw sweep to volumes in ml, as a user does it: through files and the command line."""

import json

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from test_io_tracked import numbers, write_sequence

from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.io import read_volume, write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.phantom import make_phantom
from tfmuscle.preprocessing import preprocess
from tfmuscle.sampling import cut
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows.ultrasound import Compounding, compound_sweep, merge_recordings, sweep_frames

RADIUS, CENTRE = 8.0, np.array([10.0, 12.0, 14.0])
NAMES = {"labels": {"background": 0, "soleus": 1}}


def ran(*arguments):
    return CliRunner().invoke(tfmuscle_group, [str(argument) for argument in arguments])


@pytest.fixture
def sweep(tmp_path):
    """29 frames of 50 x 42 pixels of 0.5 mm, 1 mm apart, through a bright sphere; the third pose was lost."""
    rows, columns, slices = np.meshgrid(np.arange(50), np.arange(42), np.arange(29), indexing="ij")
    places = np.stack([0.5 * columns, 0.5 * rows, slices], axis=-1)
    frames = np.where(np.linalg.norm(places - CENTRE, axis=-1) < RADIUS, 200, 50).astype(np.uint8).transpose(2, 0, 1)
    path = write_sequence(tmp_path / "sweep.igs.mha", frames, status={(2, "ImageToTrackerTransformStatus"): "INVALID"},
                          transforms={"ImageToTracker": np.diag([0.5, 0.5, 1, 1])})  # fmt: skip
    header, data = path.read_bytes().split(b"ElementDataFile", 1)
    lines = header.decode().splitlines()
    for number in range(29):
        matrix = np.diag([0.5, 0.5, 1, 1])
        matrix[2, 3] = number
        key = f"Seq_Frame{number:04d}_ImageToTrackerTransform ="
        lines = [f"{key} {numbers(matrix)}" if line.startswith(key) else line for line in lines]
    path.write_bytes("\n".join(lines).encode() + b"\nElementDataFile" + data)
    return path


def test_frames_out_labels_back_volume_in_ml(sweep, tmp_path):
    result = ran("sweep-frames", "-i", sweep, "-o", tmp_path / "frames.nii.gz")
    assert result.exit_code == 0, result.output
    assert "28 frames used, 1 without a valid image or pose" in result.output
    frames = nib.load(tmp_path / "frames.nii.gz")
    assert frames.shape == (42, 50, 28) and (tmp_path / "frames.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_allclose(frames.header.get_zooms(), (0.5, 0.5, 1.0), atol=1e-6)
    labels = (np.asarray(frames.dataobj) > 100).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, frames.affine), tmp_path / "labels.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(NAMES))
    result = ran("compound", "-i", sweep, "-o", tmp_path / "out.nii.gz", "--labels", tmp_path / "labels.nii.gz",
                 "--dataset", tmp_path / "dataset.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = read_volume(tmp_path / "out.nii.gz")
    volume = np.count_nonzero(found.array == 1) * found.geometry.voxel_volume_ml
    assert f"soleus     {volume:.2f}" in result.output
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["labels"] == NAMES["labels"] | {"ignore": 2}
    # 4/3 pi 8^3 = 2.145 ml; 3 %: voxels of 1 mm on a sphere of 8 mm
    assert volume == pytest.approx(4 / 3 * np.pi * RADIUS**3 / 1000, rel=0.03)
    # the sphere is at (10, 12, 14) of the tracker, LPS
    np.testing.assert_allclose(
        found.geometry.world(np.argwhere(found.array == 1)).mean(axis=0), (-10, -12, 14), atol=0.1
    )


def test_the_volume_of_the_sweep(sweep, tmp_path):
    result = ran("compound", "-i", sweep, "-o", tmp_path / "volume.nii.gz", "--spacing", 1, "--bridge", 2.5)
    assert result.exit_code == 0 and "100% of the voxels seen; gaps up to 2.50 mm bridged" in result.output
    volume = read_volume(tmp_path / "volume.nii.gz")
    value = {
        tuple(p): volume.array[tuple(np.rint(volume.geometry.index(p)).astype(int))]
        for p in ((-10, -12, 14), (-1, -1, 3))
    }
    assert list(value.values()) == [200, 50]
    assert (tmp_path / "volume.png").exists()


def test_frames_become_sequences(sweep, tmp_path):
    sweep_frames(sweep, tmp_path / "frames.nii.gz")
    image = read_volume(tmp_path / "frames.nii.gz")
    label_map = LabelMap({1: "soleus"})
    spec = DataSpec(kind="sequences", depth=3, size=(48, 48), orientation=None, spacing=None, label_map=label_map)
    image, labels = preprocess(image, image.with_array((image.array > 100).astype(np.uint8)), spec)
    assert image.array.shape[:3] == (28, 50, 42), "frames first, then rows and columns"
    assert len(list(cut(image.array, labels.array, spec))) > 0


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    phantom = make_phantom("ultrasound", seed=3, scale=2)
    depth = phantom.image.geometry.shape[2]
    for name, start, stop in (("a", 0, int(0.65 * depth)), ("b", int(0.35 * depth), depth)):
        box = (0, 0, start), (*phantom.image.geometry.shape[:2], stop)
        for kind, volume in (("image", phantom.image), ("labels", phantom.labels)):
            part = volume.cropped(*box)
            affine = part.geometry.affine.copy()
            affine[:3, 3] += (4, -3, 2) if name == "b" else 0
            write_volume(folder / f"{name}_{kind}.nii.gz", Volume(part.array, Geometry(part.geometry.shape, affine)))
    noise = np.random.default_rng(0).uniform(1, 255, (16, 16, 16)).astype(np.float32)
    write_volume(folder / "noise.nii.gz", Volume(noise, Geometry(noise.shape, np.eye(4))))
    return phantom, folder


def test_recordings_are_merged(recordings, tmp_path):
    phantom, folder = recordings
    out = tmp_path / "merged"
    result = ran("merge-recordings", "-i", folder / "a_image.nii.gz", "-i", folder / "b_image.nii.gz", "--labels",
                 folder / "a_labels.nii.gz", "--labels", folder / "b_labels.nii.gz", "-o", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    about = json.loads((out / "merge.json").read_text(encoding="utf-8"))
    transform = np.array(about["matches"][str(folder / "b_image.nii.gz")]["transform"])
    middle = np.append(phantom.image.geometry.world(np.array(phantom.image.geometry.shape) / 2), 1)
    # half of the 2.4 mm voxel
    np.testing.assert_allclose((transform @ (middle + (4, -3, 2, 0)))[:3], middle[:3], atol=1.2)
    whole = {f"label {key}": volume for key, volume in enumerate(phantom.volumes_ml.values(), start=1)}
    for name, volume in about["volumes_ml"].items():
        assert volume == pytest.approx(whole[name], rel=0.06)
    assert {path.name for path in out.iterdir()} == {
        "merged.nii.gz",
        "merged_labels.nii.gz",
        "merged_labels.json",
        "merge.json",
        "merged.png",
    }


def test_a_recording_that_does_not_fit_is_left_out_and_named(recordings, tmp_path):
    _, folder = recordings
    images = [
        folder / "a_image.nii.gz",
        folder / "noise.nii.gz",
        folder / "b_image.nii.gz",
        tmp_path / "missing.nii.gz",
    ]
    result = ran("merge-recordings", *(word for image in images for word in ("-i", image)), "-o", tmp_path / "merged")
    assert result.exit_code == 1 and "2 failed" in result.output and "correlation" in result.output
    assert (tmp_path / "merged" / "merged.nii.gz").exists()
    with pytest.raises(DataError, match="no other recording lies on it"):
        merge_recordings(images[:2], tmp_path / "none")
    with pytest.raises(DataError, match="there is no such file"):
        merge_recordings(images[::-1], tmp_path / "none")


def test_what_does_not_belong_together_is_refused(sweep, recordings, tmp_path):
    _, folder = recordings
    label_map = LabelMap({1: "soleus"})
    with pytest.raises(DataError, match=r"ids, \(42, 50, 28\) \(columns"):
        compound_sweep(sweep, tmp_path / "x.nii.gz", labels=(folder / "a_labels.nii.gz", label_map))
    wrong = Volume(np.full((42, 50, 28), 5, np.uint8), Geometry((42, 50, 28), np.eye(4)))
    write_volume(tmp_path / "wrong.nii.gz", wrong)
    with pytest.raises(DataError, match=r"ids \[5\] are not in the label map"):
        compound_sweep(sweep, tmp_path / "x.nii.gz", labels=(tmp_path / "wrong.nii.gz", label_map))
    for command in ("sweep-frames", "compound"):
        result = ran(command, "-i", sweep, "-o", tmp_path / "frames.tif")
        assert result.exit_code == 2 and "volumes are written as" in result.output
    with pytest.raises(ValueError, match="use a larger spacing"):
        compound_sweep(sweep, tmp_path / "x.nii.gz", Compounding(spacing=1e-4))
    with pytest.raises(DataError, match="not on the grid"):
        merge_recordings([folder / "a_image.nii.gz"] * 2, tmp_path / "m", labels=[folder / "b_labels.nii.gz"] * 2)
    with pytest.raises(ValueError, match="give two or more"):
        merge_recordings([folder / "a_image.nii.gz"], tmp_path / "m")
    (tmp_path / "dataset.json").write_text("{}")
    result = ran(
        "compound", "-i", sweep, "-o", tmp_path / "x.nii.gz", "--labels", "l", "--dataset", tmp_path / "dataset.json"
    )
    assert result.exit_code == 1 and "no usable label table" in result.output
    assert ran("compound", "-i", sweep, "-o", "x.nii.gz", "--dataset", "d.json").exit_code == 2
    for spacing in ("1e-4", "0"):  # 0 is no default
        assert ran("compound", "-i", sweep, "-o", tmp_path / "x.nii.gz", "--spacing", spacing).exit_code == 2


def test_what_is_read_is_never_written_over(sweep, recordings, tmp_path):
    before = sweep.read_bytes()
    for command in ("sweep-frames", "compound"):
        result = ran(command, "-i", sweep, "-o", sweep)
        assert result.exit_code == 1 and "is an input and would be lost" in result.output
    assert sweep.read_bytes() == before
    drawn = tmp_path / "drawn.nii.gz"
    write_volume(drawn, Volume(np.zeros((42, 50, 28), np.uint8), Geometry((42, 50, 28), np.eye(4))))
    with pytest.raises(DataError, match=r"drawn.nii.gz: is an input"):
        compound_sweep(sweep, drawn, labels=(drawn, None))
    (tmp_path / "merged.nii.gz").write_bytes((recordings[1] / "a_image.nii.gz").read_bytes())
    with pytest.raises(DataError, match=r"merged.nii.gz: is an input"):
        merge_recordings([tmp_path / "merged.nii.gz", recordings[1] / "b_image.nii.gz"], tmp_path)
    (tmp_path / "out.json").write_text('{"mine": 1}')
    with pytest.raises(DataError, match=r"out.json: holds something else"):
        compound_sweep(sweep, tmp_path / "out.nii.gz", labels=(drawn, None))


def test_what_was_not_seen_stays_unknown_when_recordings_are_merged(recordings, tmp_path):
    """The ignore id travels in the JSON beside the labels: without it, unseen voxels would be a structure."""
    folder = recordings[1]
    label = read_volume(folder / "a_labels.nii.gz")
    half = label.array.astype(np.float32)  # whole numbers in floats are ids, as other programs save them
    half[:, :, half.shape[2] // 2 :] = 9
    names = {int(key): f"muscle_{key}" for key in np.unique(label.array) if key}
    for name in "ab":
        write_volume(tmp_path / f"{name}.nii.gz", label.with_array(half))
        content = {"labels": LabelMap(names, ignore=9).to_dict()}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    images, labels = [folder / "a_image.nii.gz"] * 2, [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    made = merge_recordings(images, tmp_path / "m", labels=labels)
    assert set(made.volumes_ml) == set(names.values())
    assert (read_volume(tmp_path / "m/merged_labels.nii.gz").array[:, :, half.shape[2] // 2 :] == 9).all()
    assert json.loads((tmp_path / "m/merged_labels.json").read_text(encoding="utf-8"))["labels"]["ignore"] == 9
    (tmp_path / "b.json").write_text('{"labels": {"background": 0, "femur": 1}}')
    with pytest.raises(DataError, match="other names stand beside it"):
        merge_recordings(images, tmp_path / "m", labels=labels)
