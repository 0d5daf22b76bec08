"""Small DICOM files for the tests, written by pydicom: classic stacks, enhanced objects, Siemens mosaics."""

import struct

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tfmuscle.errors import DataError
from tfmuscle.io import read_volume

PATIENT, NUMBER = "Quux^Zebulon", "PAT-4711-X"
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE = ((0.8, 0.6, 0.0), (-0.168, 0.224, 0.96))  # unit vectors: .64 + .36; .028224 + .050176 + .9216; product 0


def slice_header(path, *, syntax=ExplicitVRLittleEndian, storage=MRImageStorage):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, generate_uid()
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.Modality = PATIENT, NUMBER, "MR"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.9", "1.2.8"
    return dataset


def set_pixels(dataset, pixels):
    dataset.Rows, dataset.Columns = pixels.shape[-2:] if pixels.ndim == 2 or pixels.shape[-1] != 3 else pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()


def write_slice(path, pixels, *, position, cosines=AXIAL, series="1.2.3", syntax=ExplicitVRLittleEndian, **tags):
    """Writes one slice; a tag given as None is left out, others are set as they are."""
    dataset = slice_header(path, syntax=syntax)
    dataset.SeriesInstanceUID = series
    set_pixels(dataset, pixels)
    dataset.PixelSpacing, dataset.SliceThickness = [0.75, 0.5], 2.5  # between rows, between columns
    dataset.ImageOrientationPatient = [*cosines[0], *cosines[1]]
    dataset.ImagePositionPatient = [round(float(x), 9) for x in position]
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


def normal(cosines):
    return np.cross(*cosines)


def stack_of(count, *, dtype=np.int16, plus=0):
    """Voxel value 100 * slice + 10 * row + column + plus, as `(slice, row, column)`."""
    row, column = np.mgrid[0:4, 0:6]
    return np.stack([100 * k + 10 * row + column + plus for k in range(count)]).astype(dtype)


def write_series(
    folder, *, count=5, cosines=AXIAL, gap=2.5, dtype=np.int16, names="IM{:04d}.dcm", plus=0, first=1, **tags
):
    """Writes a stack of `stack_of`; returns it as `(column, row, slice)`."""
    folder.mkdir(parents=True, exist_ok=True)
    stack = stack_of(count, dtype=dtype, plus=plus)
    for k in range(count):
        position = np.array([-20.25, 31.5, -400.0]) + k * gap * normal(cosines)
        numbers = {"InstanceNumber": k + first} | tags
        write_slice(folder / names.format(k), stack[k], position=position, cosines=cosines, **numbers)
    return stack.transpose(2, 1, 0)


def item(**tags):
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def sequence(**tags):
    return Sequence([item(**tags)])


def frame_groups(k, *, cosines=AXIAL, gap=2.5, shared=False, **frame_content):
    """The functional groups of frame `k` of a stack, or, with `shared`, those all frames have in common."""
    groups = Dataset()
    if shared:
        groups.PixelMeasuresSequence = sequence(PixelSpacing=[0.75, 0.5], SliceThickness=2.5)
        groups.PlaneOrientationSequence = sequence(ImageOrientationPatient=[*cosines[0], *cosines[1]])
        return groups
    position = np.array([-20.25, 31.5, -400.0]) + k * gap * normal(cosines)
    groups.PlanePositionSequence = sequence(ImagePositionPatient=[round(float(x), 9) for x in position])
    groups.FrameContentSequence = sequence(StackID="1", InStackPositionNumber=k + 1, **frame_content)
    return groups


def write_enhanced(path, pixels, groups, *, shared=None, **tags):
    """Writes an enhanced multi-frame object of `pixels` `(frame, row, column)`."""
    dataset = slice_header(path, storage=EnhancedMRImageStorage)
    set_pixels(dataset, pixels)
    dataset.NumberOfFrames = len(pixels)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared or frame_groups(0, shared=True)])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


def csa_header(**values):
    """A Siemens CSA header of the second kind with some tags of text values."""
    content = b"SV10\4\3\2\1" + struct.pack("<II", len(values), 77)
    for name, items in values.items():
        content += struct.pack("<64si4siii", name.encode(), len(items), b"FD\0\0", 4, 6, 77)
        for k in range(6):  # the scanner writes six items, the first ones in use
            text = f"{items[k]}\0".encode() if k < len(items) else b""
            content += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return content


def write_mosaic(path, stack, *, cosines=AXIAL, gap=3.0, direction=1, csa=True, **tags):
    """Writes `stack` `(slice, row, column)` as a mosaic; the first slice's first pixel lies at (-20.25, 31.5, -400)."""
    count, rows, columns = stack.shape
    side = int(np.ceil(np.sqrt(count)))
    image = np.zeros((side * rows, side * columns), stack.dtype)
    for k in range(count):
        image[k // side * rows : (k // side + 1) * rows, k % side * columns : (k % side + 1) * columns] = stack[k]
    row, column = np.array(cosines)
    shift = row * 0.5 * (side - 1) * columns / 2 + column * 0.75 * (side - 1) * rows / 2
    dataset = slice_header(path)
    set_pixels(dataset, image)
    dataset.ImageType, dataset.PixelSpacing = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], [0.75, 0.5]
    dataset.SliceThickness, dataset.SpacingBetweenSlices = 2.5, gap
    dataset.ImageOrientationPatient = [*cosines[0], *cosines[1]]
    dataset.ImagePositionPatient = [round(float(x), 9) for x in np.array([-20.25, 31.5, -400.0]) - shift]
    if csa:
        vector = [f"{x:.8f}" for x in direction * normal(cosines)]
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", csa_header(NumberOfImagesInMosaic=[count], SliceNormalVector=vector))
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


def by_simpleitk(folder):
    """Array `(i, j, k)` and RAS+ affine as SimpleITK reads the series."""
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


def refusal(path, match, **choice):
    """Reads, expects one refusing line that names nobody, and returns it."""
    with pytest.raises(DataError, match=match) as caught:
        read_volume(path, **choice)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "; " in message
    for secret in ("Quux", "Zebulon", "4711"):
        assert secret not in message
    return message
