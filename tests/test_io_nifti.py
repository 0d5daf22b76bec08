"""NIfTI: judged by nibabel and SimpleITK on grids of every kind."""

import gzip
import resource

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tfmuscle.errors import DataError
from tfmuscle.io import case_id, is_dicom_folder, read_volume, volume_files, write_volume
from tfmuscle.io.nifti import read_nifti, storable, write_nifti
from tfmuscle.volume import Geometry, Volume

POSITION_TOLERANCE_MM = 1e-3  # NIfTI headers are float32: 1e-7 of positions up to 1000 mm, and a quaternion


def rotation(degrees, axis):
    """Rotation about a coordinate axis, right-handed."""
    a, (i, j) = np.radians(degrees), [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = np.cos(a), -np.sin(a), np.sin(a), np.cos(a)
    return matrix


def affine(direction, spacing, origin=(-12.5, 340.25, -871.125)):
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(direction) @ np.diag(spacing)
    matrix[:3, 3] = origin
    return matrix


OBLIQUE = rotation(20, 0) @ rotation(-35, 1) @ rotation(50, 2)
GRIDS = {
    "RAS": ((5, 6, 7), affine(np.eye(3), (1, 1, 1))),
    "LPS": ((5, 6, 7), affine(np.diag([-1, -1, 1]), (1, 2, 3))),
    "LAS": ((5, 6, 7), affine(np.diag([-1, 1, 1]), (1.5, 1.5, 4))),
    "ASL": ((5, 6, 7), affine([[0, 0, -1], [1, 0, 0], [0, 1, 0]], (0.9, 0.9, 5))),
    "oblique": ((5, 6, 7), affine(OBLIQUE, (0.7, 1.1, 2.3))),
    "oblique_left_handed": ((5, 6, 7), affine(OBLIQUE @ np.diag([1, 1, -1]), (0.7, 1.1, 2.3))),
    "anisotropic": ((5, 6, 3), affine(rotation(10, 0), (0.8, 0.8, 24))),
    "one_slice": ((5, 6, 1), affine(rotation(-15, 1), (0.5, 0.5, 8))),
}


def corners(shape):
    return np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(shape) - 1)


def world_of_simpleitk(path, index):
    """World position in RAS+ of voxels, as SimpleITK sees the file."""
    image = sitk.ReadImage(str(path))
    return np.array([image.TransformContinuousIndexToPhysicalPoint(i.tolist()) for i in index.astype(float)]) * (
        -1,
        -1,
        1,
    )


def numbers(shape, dtype=np.int16):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("name", GRIDS)
def test_reading_agrees_with_nibabel(name, tmp_path):
    shape, matrix = GRIDS[name]
    array = numbers(shape)
    nib.save(nib.Nifti1Image(array, matrix), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.array.dtype == np.int16
    assert (volume.array == array).all()
    assert np.array_equal(volume.geometry.affine, nib.load(tmp_path / "a.nii.gz").affine)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", GRIDS)
def test_a_written_file_lies_where_it_was_in_nibabel_and_simpleitk(name, suffix, tmp_path):
    shape, matrix = GRIDS[name]
    volume = Volume(numbers(shape), Geometry(shape, matrix))
    path = tmp_path / f"a{suffix}"
    write_volume(path, volume)
    image = nib.load(path)
    assert np.abs(image.affine - matrix).max() < POSITION_TOLERANCE_MM
    assert np.abs(image.get_qform() - matrix).max() < POSITION_TOLERANCE_MM
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (np.asarray(image.dataobj) == volume.array).all()
    index = corners(shape)
    assert np.abs(world_of_simpleitk(path, index) - volume.geometry.world(index)).max() < POSITION_TOLERANCE_MM
    seen = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)
    assert (seen == volume.array).all()
    assert read_volume(path).geometry.same_grid(volume.geometry)


def test_a_sheared_grid_keeps_its_sform_and_gets_no_wrong_qform(tmp_path):
    matrix = affine(np.eye(3), (1, 1, 2))
    matrix[0, 2] = 0.5  # slices slide sideways
    write_nifti(tmp_path / "a.nii", Volume(numbers((4, 4, 5)), Geometry((4, 4, 5), matrix)))
    image = nib.load(tmp_path / "a.nii")
    assert np.allclose(image.affine, matrix)
    assert int(image.header["qform_code"]) == 0
    with pytest.raises(RuntimeError, match="orthonormal"):  # refused rather than misplaced
        sitk.ReadImage(str(tmp_path / "a.nii"))


def test_sform_is_preferred_to_qform_and_qform_to_voxel_sizes(tmp_path):
    one, other = GRIDS["oblique"][1], GRIDS["LPS"][1]
    image = nib.Nifti1Image(numbers((5, 6, 7)), None)
    image.set_qform(other, code=1)
    image.set_sform(one, code=2)
    nib.save(image, tmp_path / "both.nii")
    assert np.allclose(read_nifti(tmp_path / "both.nii").geometry.affine, one, atol=POSITION_TOLERANCE_MM)
    image.set_sform(one, code=0)
    nib.save(image, tmp_path / "qform.nii")
    assert np.allclose(read_nifti(tmp_path / "qform.nii").geometry.affine, other, atol=POSITION_TOLERANCE_MM)
    content = (tmp_path / "both.nii").read_bytes()
    content = patch(252, [0, 0], "<i2")(patch(80, [1.5, 2.5, 3.5], "<f4")(content))  # no codes, voxel sizes only
    (tmp_path / "none.nii").write_bytes(content)
    fallback = read_nifti(tmp_path / "none.nii").geometry
    assert fallback.spacing == (1.5, 2.5, 3.5)
    assert np.array_equal(fallback.affine, nib.load(tmp_path / "none.nii").affine)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_the_numeric_type_survives_reading_and_writing(dtype, tmp_path):
    array = numbers((3, 4, 5), dtype)
    write_nifti(tmp_path / "a.nii.gz", Volume(array, Geometry((3, 4, 5), np.eye(4))))
    found = read_nifti(tmp_path / "a.nii.gz").array
    assert found.dtype == dtype
    assert (found == array).all()
    raw = nib.load(tmp_path / "a.nii.gz")
    assert (raw.dataobj.slope, raw.dataobj.inter) == (1, 0)


@pytest.mark.parametrize(
    ("given", "stored"),
    [(bool, np.uint8), (np.float16, np.float32), (np.int64, np.int32), (np.uint64, np.int32), (">i2", np.int16)],
)
def test_types_that_viewers_cannot_read_are_written_as_their_neighbour(given, stored, tmp_path):
    array = (numbers((3, 4, 5)) % 2).astype(given)
    write_nifti(tmp_path / "a.nii", Volume(array, Geometry((3, 4, 5), np.eye(4))))
    found = read_nifti(tmp_path / "a.nii").array
    assert found.dtype == stored
    assert (found == array).all()


def test_large_integers_keep_64_bits_and_complex_numbers_are_refused():
    assert storable(np.array([[[2**31]]])).dtype == np.uint32  # one more than int32 holds
    assert storable(np.array([[[2**40]]])).dtype == np.int64
    with pytest.raises(ValueError, match="complex128 cannot be written"):
        storable(np.zeros((1, 1, 1), complex))


def test_scaled_and_foreign_endian_files_come_out_as_native_numbers(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(np.array([[[6, 16, 26]]], np.int16), np.eye(4), header)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "scaled.nii")
    found = read_nifti(tmp_path / "scaled.nii").array
    assert found.dtype == np.dtype(np.float32)
    assert found.dtype.isnative
    assert found.tolist() == [[[0.0, 5.0, 10.0]]]  # 6, 16, 26 times 0.5 minus 3
    nib.save(nib.Nifti1Image(numbers((2, 2, 2)), np.eye(4), nib.Nifti1Header(endianness=">")), tmp_path / "big.nii")
    assert read_nifti(tmp_path / "big.nii").array.dtype.isnative


def test_2d_files_are_one_slice_and_trailing_ones_vanish(tmp_path):
    nib.save(nib.Nifti1Image(numbers((4, 5)), np.diag([2, 3, 7, 1])), tmp_path / "flat.nii")
    nib.save(nib.Nifti1Image(numbers((4, 5, 6, 1, 1)), np.eye(4)), tmp_path / "long.nii")
    flat, long = read_nifti(tmp_path / "flat.nii"), read_nifti(tmp_path / "long.nii")
    assert flat.array.shape == (4, 5, 1)
    assert flat.spacing == (2.0, 3.0, 7.0)
    assert (flat.array[..., 0] == numbers((4, 5))).all()
    assert (long.array == numbers((4, 5, 6, 1, 1))[..., 0, 0]).all()


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (4, 5, 6, 1, 3)])
def test_channels_are_chosen_or_refused(shape, tmp_path):
    array = numbers(shape)
    path = tmp_path / "many.nii.gz"
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    assert (read_volume(path, channel=2).array == array[..., 2].reshape(4, 5, 6)).all()
    with pytest.raises(DataError, match="many.nii.gz: 3 channels or time points, one is needed; choose a channel"):
        read_volume(path)
    for channel in (3, -1):
        with pytest.raises(DataError, match=f"channel {channel} was asked for, it has 3; choose from 0 to 2"):
            read_volume(path, channel=channel)


def test_a_volume_with_channels_is_written_as_4d(tmp_path):
    array = numbers((4, 5, 6, 2))
    write_nifti(tmp_path / "a.nii.gz", Volume(array, Geometry((4, 5, 6), np.eye(4))))
    assert (read_nifti(tmp_path / "a.nii.gz", channel=1).array == array[..., 1]).all()


def test_nan_and_infinity_are_read_as_they_are(tmp_path):
    array = np.array([[[np.nan, np.inf, 1]]], np.float32)
    write_nifti(tmp_path / "a.nii", Volume(array, Geometry((1, 1, 3), np.eye(4))))
    assert np.array_equal(read_nifti(tmp_path / "a.nii").array, array, equal_nan=True)


def damaged(tmp_path, name, change):
    """Writes a sound file, lets `change` spoil its bytes, and returns its path."""
    write_nifti(tmp_path / "sound.nii", Volume(numbers((20, 20, 20)), Geometry((20, 20, 20), np.eye(4))))
    content = change((tmp_path / "sound.nii").read_bytes())
    path = tmp_path / name
    path.write_bytes(content)
    return path


def patch(offset, values, dtype):
    """Overwrites header fields by their offset in the NIfTI-1 standard."""
    raw = np.array(values, dtype).tobytes()
    return lambda content: content[:offset] + raw + content[offset + len(raw) :]


ALL_DIMS = patch(40, [3, 30000, 30000, 30000], "<i2")
DAMAGE = {
    "garbage": ("a.nii", lambda c: b"not an image" * 50, "not a readable NIfTI image"),
    "empty": ("a.nii", lambda c: b"", "not a readable NIfTI image"),
    "no_gzip": ("a.nii.gz", lambda c: c, "not a readable NIfTI image"),
    "cut_off": ("a.nii", lambda c: c[:-1], "damaged or cut off"),
    "cut_off_gzip": ("a.nii.gz", lambda c: gzip.compress(c)[:-3000], "damaged or cut off"),
    "cut_off_checksum": ("a.nii.gz", lambda c: gzip.compress(c)[:-2], "damaged or cut off"),
    "huge": ("a.nii", ALL_DIMS, "cut off, 54000000000000 bytes are promised"),
    "huge_gzip": ("a.nii.gz", lambda c: gzip.compress(ALL_DIMS(c)), "cut off, 54000000000000 bytes are promised"),
    "zero_affine": ("a.nii", patch(280, [0] * 12, "<f4"), "no usable place in space"),
    "nan_affine": ("a.nii", patch(280, [np.nan] * 12, "<f4"), "no usable place in space"),
    "no_place": (
        "a.nii",
        lambda c: patch(252, [0, 0], "<i2")(patch(80, [0, 1, 1], "<f4")(c)),
        "no sform, and voxel sizes",
    ),
    "nan_sizes": ("a.nii", lambda c: patch(252, [1, 0], "<i2")(patch(80, [1, np.nan, 1], "<f4")(c)), "a.nii: "),
    "complex": ("a.nii", patch(70, [32, 64], "<i2"), "complex64 voxels; one real number"),
    "colour": ("a.nii", patch(70, [128, 24], "<i2"), "colour voxels; one real number"),
    "two_more_axes": ("a.nii", patch(40, [5, 2, 2, 2, 2, 2], "<i2"), "at most one axis of channels"),
    "no_voxels": ("a.nii", patch(40, [3, 0, 2, 2], "<i2"), "a.nii: "),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(kind, tmp_path):
    name, change, message = DAMAGE[kind]
    path = damaged(tmp_path, name, change)
    with pytest.raises(DataError, match=message) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


def test_a_flipped_bit_in_a_compressed_file_is_noticed(tmp_path):
    def flip(content):
        packed = bytearray(gzip.compress(content))
        packed[len(packed) // 2] ^= 1
        return bytes(packed)

    with pytest.raises(DataError, match="damaged or cut off"):
        read_volume(damaged(tmp_path, "a.nii.gz", flip))


def test_missing_unknown_and_empty_paths(tmp_path):
    for read in (read_nifti, read_volume):
        with pytest.raises(DataError, match="none.nii.gz: there is no such file"):
            read(tmp_path / "none.nii.gz")
    (tmp_path / "a.docx").write_bytes(b"x" * 200)
    with pytest.raises(DataError, match="a.docx: not a known image; use .nii.gz"):
        read_volume(tmp_path / "a.docx")
    with pytest.raises(DataError, match="no such folder"):
        volume_files(tmp_path / "none")


def test_only_whole_files_are_left_behind(tmp_path):
    volume = Volume(
        np.random.default_rng(0).integers(0, 2**15, (40, 40, 40)).astype(np.int16), Geometry((40,) * 3, np.eye(4))
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # as a disk that fills up
    try:
        for suffix in (".nii", ".nii.gz"):
            with pytest.raises(DataError, match=f"full{suffix}: the disk is full .* this file was not kept"):
                write_volume(tmp_path / f"full{suffix}", volume)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_ending_is_not_written(tmp_path):
    volume = Volume(numbers((2, 2, 2)), Geometry((2, 2, 2), np.eye(4)))
    for name in ("a.png", "a.mhd", "a"):
        with pytest.raises(ValueError, match="volumes are written as .nii.gz, .nii, .nrrd, .mha"):
            write_volume(tmp_path / name, volume)


def test_files_of_a_folder_and_names_of_cases(tmp_path):
    for name in ("b.nii.gz", "a.nrrd", "C.MHA", "notes.txt", ".tmp-7-a.nii.gz", "._b.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    assert [path.name for path in volume_files(tmp_path)] == ["C.MHA", "a.nrrd", "b.nii.gz"]
    assert not is_dicom_folder(tmp_path)
    assert not is_dicom_folder(tmp_path / "none")
    names = ["x/thigh_01.nii.gz", "x/thigh.v2.mha", "x/IM1.dcm", "x/series", "KNEE.NII.GZ"]
    assert [case_id(name) for name in names] == ["thigh_01", "thigh.v2", "IM1", "series", "KNEE"]


def test_real_scans_agree_with_nibabel_and_simpleitk(data_dir):
    paths = [
        *sorted((data_dir / "thigh_fat_water").rglob("*.nii.gz")),
        *sorted((data_dir / "leg_dixon").rglob("*.nii.gz")),
    ]
    assert paths
    for path in paths[:12]:
        volume, image = read_volume(path), nib.load(path)
        assert np.array_equal(volume.geometry.affine, image.affine)
        assert np.allclose(volume.array, image.get_fdata(), rtol=1e-6)
        index = corners(volume.array.shape)
        assert np.abs(world_of_simpleitk(path, index) - volume.geometry.world(index)).max() < 1e-2, path.name
