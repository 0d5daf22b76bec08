"""NRRD, MetaImage, TIFF and PNG: judged by SimpleITK's own points and by nibabel through a NIfTI of the same image."""

import resource

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tfmuscle.errors import DataError
from tfmuscle.io import read_volume, write_volume
from tfmuscle.io.simpleitk import read_simpleitk
from tfmuscle.volume import Geometry, Volume

POSITION_TOLERANCE_MM = 1e-3  # the NIfTI judge stores float32
TILT = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
    [[1, 0, 0], [0, 0.28, -0.96], [0, 0.96, 0.28]]
)
DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "LAS": np.diag([1.0, -1.0, 1.0]),
    "permuted": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "oblique": TILT,
    "left_handed": TILT @ np.diag([1.0, 1.0, -1.0]),
}


def image_of(direction, shape=(5, 6, 7), spacing=(0.7, 1.1, 6.0)):
    """SimpleITK image whose index runs `(i, j, k)` over `shape`."""
    array = np.random.default_rng(0).integers(-50, 100, shape).astype(np.int16)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetDirection(np.asarray(direction, float).ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin((-12.5, 340.25, -871.125))
    return image, array


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 1)])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nhdr", ".mhd"])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_reading_agrees_with_simpleitk_and_with_nibabel(name, suffix, shape, tmp_path):
    image, array = image_of(DIRECTIONS[name], shape)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    sitk.WriteImage(image, str(tmp_path / "judge.nii"))
    volume, judge = read_volume(tmp_path / f"a{suffix}"), nib.load(tmp_path / "judge.nii")
    assert volume.array.dtype == np.int16
    assert (volume.array == array).all()
    assert (np.asarray(judge.dataobj).reshape(shape) == array).all()
    assert np.abs(volume.geometry.affine - judge.affine).max() < POSITION_TOLERANCE_MM
    for index in [(0, 0, 0), (4, 5, shape[2] - 1)]:
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        assert np.abs(volume.geometry.world(index) - point).max() < 1e-6


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_written_file_comes_back_and_lies_where_it_was(name, suffix, tmp_path):
    image, array = image_of(DIRECTIONS[name])
    sitk.WriteImage(image, str(tmp_path / "given.nrrd"))
    volume = read_volume(tmp_path / "given.nrrd")
    write_volume(tmp_path / f"out{suffix}", volume)
    found = sitk.ReadImage(str(tmp_path / f"out{suffix}"))
    assert np.allclose(found.GetDirection(), image.GetDirection(), atol=1e-9)
    assert np.allclose(found.GetOrigin(), image.GetOrigin(), atol=1e-9)
    assert np.allclose(found.GetSpacing(), image.GetSpacing(), atol=1e-9)
    assert found.GetPixelIDTypeAsString() == "16-bit signed integer"
    assert (sitk.GetArrayFromImage(found).transpose(2, 1, 0) == array).all()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
def test_all_formats_hold_the_same_volume(suffix, tmp_path):
    matrix = np.diag([0.8, 0.9, 5.0, 1.0]) + 0.0
    matrix[:3, 3] = (4, 5, 6)
    volume = Volume((np.arange(24).reshape(2, 3, 4) % 5).astype(np.uint8), Geometry((2, 3, 4), matrix))
    write_volume(tmp_path / f"a{suffix}", volume)
    found = read_volume(tmp_path / f"a{suffix}")
    assert found.array.dtype == np.uint8
    assert (found.array == volume.array).all()
    assert found.geometry.same_grid(volume.geometry)


def test_a_nrrd_in_ras_space_is_not_turned_twice(tmp_path):
    header = (
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 1 1\n"
        "space directions: (2,0,0) (0,3,0) (0,0,4)\nencoding: raw\nspace origin: (10,20,30)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes([7, 9]))
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.array.ravel().tolist() == [7, 9]
    assert np.allclose(volume.geometry.affine, [[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])


def test_pictures_are_one_slice_of_1_mm_whatever_their_dots_per_inch(tmp_path):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)  # 3 rows, 4 columns
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.3527, 0.3527))
    for suffix in (".png", ".tif", ".tiff"):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        volume = read_volume(tmp_path / f"a{suffix}")
        assert volume.array.shape == (4, 3, 1)
        assert volume.array[3, 1, 0] == 7  # column 3, row 1
        assert volume.spacing == (1.0, 1.0, 1.0)


def test_grey_stored_as_colour_is_grey_and_colour_needs_a_channel(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([grey] * 3, -1), isVector=True), str(tmp_path / "grey.png"))
    assert (read_volume(tmp_path / "grey.png").array[..., 0] == grey.T).all()
    colour = np.stack([grey, grey + 1, grey], -1)
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(tmp_path / "colour.png"))
    with pytest.raises(DataError, match="colour.png: a colour image; choose a channel"):
        read_volume(tmp_path / "colour.png")
    assert (read_volume(tmp_path / "colour.png", channel=1).array[..., 0] == grey.T + 1).all()


def test_vectors_and_time_points_need_a_channel(tmp_path):
    array = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    write_volume(tmp_path / "vector.mha", Volume(array, Geometry((2, 3, 4), np.eye(4))))
    times = sitk.JoinSeries([sitk.GetImageFromArray(array[..., t].transpose(2, 1, 0).copy()) for t in range(5)])
    sitk.WriteImage(times, str(tmp_path / "times.nrrd"))
    for name in ("vector.mha", "times.nrrd"):
        assert (read_volume(tmp_path / name, channel=3).array == array[..., 3]).all()
        with pytest.raises(DataError, match=f"{name}: 5 channels or time points, one is needed"):
            read_volume(tmp_path / name)
    one = sitk.JoinSeries([sitk.GetImageFromArray(array[..., 0].transpose(2, 1, 0).copy())])
    sitk.WriteImage(one, str(tmp_path / "one.nrrd"))
    assert (read_volume(tmp_path / "one.nrrd").array == array[..., 0]).all()
    both = sitk.JoinSeries([sitk.ReadImage(str(tmp_path / "vector.mha"))] * 2)
    sitk.WriteImage(both, str(tmp_path / "both.mha"))
    with pytest.raises(DataError, match="2 time points of 5 values each; split the file"):
        read_volume(tmp_path / "both.mha")


def test_complex_voxels_are_refused(tmp_path):
    image = sitk.Cast(sitk.GetImageFromArray(np.ones((2, 2, 2), np.float32)), sitk.sitkComplexFloat32)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(DataError, match="voxels of type complex of 32-bit float; one real number per voxel"):
        read_volume(tmp_path / "a.nrrd")


def spoiled(tmp_path, name, change, *, compressed=False):
    image, _ = image_of(np.eye(3), (20, 20, 20), (1.0, 1.0, 1.0))
    suffix = name[name.rindex(".") :]
    image = sitk.Cast(image[:, :, 0], sitk.sitkUInt8) if suffix in (".png", ".tif") else image
    sitk.WriteImage(image, str(tmp_path / f"sound{suffix}"), compressed)
    (tmp_path / name).write_bytes(change((tmp_path / f"sound{suffix}").read_bytes()))
    return tmp_path / name


def flip_a_bit(content):
    spoilt = bytearray(content)
    spoilt[len(spoilt) // 2] ^= 1
    return bytes(spoilt)


def swap(old, new):
    def change(content):
        assert old in content
        return content.replace(old, new)

    return change


DAMAGE = [
    ("a.mha", lambda c: c[:-1], False, "damaged or cut off"),
    ("a.mha", lambda c: c[:-1], True, "damaged or cut off"),
    ("a.mha", flip_a_bit, True, "damaged or cut off"),  # ITK itself returns wrong voxels here
    ("a.mha", swap(b"DimSize = 20 20 20", b"DimSize = 40000 40000 40000"), False, "damaged or cut off"),
    ("a.mha", swap(b"NDims = 3", b"NDims = 93"), False, "a header of 0 axes that does not fit itself"),  # ITK crashes
    ("a.mha", swap(b"NDims = 3", b"NDims = 9"), False, "a header of 9 axes that does not fit itself"),
    ("a.mha", swap(b"Offset = -12.5", b"Offset ="), False, "a header of 3 axes that does not fit itself"),
    ("a.mha", swap(b"DimSize = 20 20 20", b"DimSize = 20 0 20"), False, "a header of 3 axes that does not fit itself"),
    ("a.mha", swap(b"DimSize = 20 20 20", b"DimSize = 20 20 -2"), False, "a header of 3 axes that does not fit itself"),
    ("a.mha", swap(b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1"), False, "not a readable image"),
    ("a.mha", swap(b"ElementSpacing = 1 1 1\n", b""), False, "no voxel size in its header"),
    ("a.nrrd", lambda c: c[:-100], False, "not a readable image"),
    ("a.nrrd", lambda c: c[:-100], True, "not a readable image"),
    ("a.nrrd", flip_a_bit, True, "not a readable image"),
    ("a.nrrd", swap(b"space directions: (1,0,0) (0,1,0) (0,0,1)\n", b""), False, "no voxel size in its header"),
    ("a.nrrd", lambda c: b"", False, "no voxel size in its header"),
    ("a.png", lambda c: c[: len(c) // 2], False, "not a readable image"),
    ("a.tif", lambda c: b"not a picture" * 20, False, "not a readable image"),
]


@pytest.mark.parametrize(("name", "change", "compressed", "message"), DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(name, change, compressed, message, tmp_path, capfd):
    path = spoiled(tmp_path, name, change, compressed=compressed)
    with pytest.raises(DataError, match=message) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # nor does ITK write lines of its own


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="a.nrrd: there is no such file"):
        read_simpleitk(tmp_path / "a.nrrd")


def test_only_whole_files_are_left_behind(tmp_path):
    volume = Volume(
        np.random.default_rng(0).integers(0, 2**15, (40, 40, 40)).astype(np.int16), Geometry((40,) * 3, np.eye(4))
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # as a disk that fills up
    try:
        for suffix in (".nrrd", ".mha"):
            with pytest.raises(DataError, match=f"full{suffix}: cannot be written .*; check space and permissions"):
                write_volume(tmp_path / f"full{suffix}", volume)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_real_left_handed_nrrd_lies_where_simpleitk_puts_it(data_dir, tmp_path):
    path = data_dir / "knee_atlas" / "seg.nrrd"
    image, volume = sitk.ReadImage(str(path)), read_volume(path)
    assert np.linalg.det(np.array(image.GetDirection()).reshape(3, 3)) < 0
    write_volume(tmp_path / "seg.nii.gz", volume)
    again = sitk.ReadImage(str(tmp_path / "seg.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(again), sitk.GetArrayFromImage(image))
    last = [size - 1 for size in image.GetSize()]
    for index in ([0, 0, 0], last):
        point = np.array(image.TransformIndexToPhysicalPoint(index))
        assert np.abs(volume.geometry.world(index) - point * (-1, -1, 1)).max() < 1e-6
        assert np.abs(np.array(again.TransformIndexToPhysicalPoint(index)) - point).max() < POSITION_TOLERANCE_MM
