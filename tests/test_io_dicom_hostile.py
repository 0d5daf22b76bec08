"""Files that are broken, cut off or built to harm: refused in one line that names nobody, before memory is taken."""

import resource
import struct
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, refusal, write_series, write_slice
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, MediaStorageDirectoryStorage, generate_uid

from tfmuscle.errors import DataError
from tfmuscle.io import read_volume
from tfmuscle.io.dicom import is_zip_file, list_series, read_dicom


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImagePositionPatient": None}, "no usable ImagePositionPatient in 1 of 1 images"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "no usable ImageOrientationPatient in 1 of 1 images"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "is no pair of directions"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "is no pair of directions"),
        ({"PixelSpacing": None}, "no usable PixelSpacing"),
        ({"PixelSpacing": [0, 0]}, "no usable PixelSpacing"),
        ({"RescaleSlope": ""}, "no usable RescaleSlope"),
        ({"RescaleSlope": 0}, "no usable RescaleSlope"),
        ({"PixelData": b"\0" * 10}, "48 bytes of pixels are promised, 22 are there .cut off"),
        ({"PixelData": None}, "no pixels in it, only their description"),
        ({"Rows": 60000, "Columns": 60000}, "7,200,000,000 bytes of pixels are promised"),
        ({"Rows": 0}, "1 images of 6x0 pixels are promised"),
        ({"NumberOfFrames": 2**31 - 1}, "103,079,215,056 bytes of pixels are promised|without their places"),
        ({"HighBit": 15, "BitsStored": 12}, "the bits of a pixel do not begin at the lowest"),
    ],
)
def test_broken_headers(tags, message, tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0), **tags)
    refusal(tmp_path / "a.dcm", message)


def test_a_compression_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.dcm"
    write_slice(path, np.ones((4, 6), np.int16), position=(0, 0, 0))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG4HP41
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 10])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    refusal(path, "compressed as MPEG-4 .*, which cannot be read here; convert the series with dcm2niix")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.99999.1"
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    refusal(path, "compressed as 1.2.840.99999.1, which cannot be read here")
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    refusal(path, "a.dcm: its pixels cannot be read")


def test_compressed_pixels_that_promise_too_much_are_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.dcm"
    write_slice(path, np.ones((64, 64), np.int16), position=(0, 0, 0))
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless)
    dataset.Rows, dataset.Columns = 65535, 65535
    dataset.save_as(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(path, "8,589,672,450 bytes of pixels are promised")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0))
    content = (tmp_path / "a.dcm").read_bytes()
    for length in range(133, len(content), 11):
        (tmp_path / "b.dcm").write_bytes(content[:length])
        refusal(tmp_path / "b.dcm", "b.dcm: ")


def test_bytes_changed_anywhere_end_in_a_volume_or_a_reason(tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0))
    content = bytearray((tmp_path / "a.dcm").read_bytes())
    random = np.random.default_rng(3)
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        for place in random.integers(132, len(content), 3):
            changed[place] = random.integers(256)
        (tmp_path / "b.dcm").write_bytes(changed)
        try:
            read_volume(tmp_path / "b.dcm")
        except DataError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "place", [b"\x20\x00\x32\x00DS", b"\x28\x00\x30\x00DS", b"\x28\x00\x01\x01US", b"\x02\x00\x02\x00UI"]
)
def test_a_tag_that_pydicom_only_finds_broken_later_is_refused(place, tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0))
    content = (tmp_path / "a.dcm").read_bytes()
    assert content.count(place) == 1
    (tmp_path / "b.dcm").write_bytes(content.replace(place, place[:4] + b"\x55\x39"))  # no such type of value
    refusal(tmp_path / "b.dcm", "b.dcm: a damaged DICOM file")


def test_a_damaged_slice_does_not_shorten_the_stack(tmp_path):
    write_series(tmp_path / "s" / "a")
    last = tmp_path / "s" / "a" / "IM0004.dcm"  # the last one: no gap would tell
    content = last.read_bytes()
    last.write_bytes(b"")
    refusal(tmp_path / "s", "a/IM0004.dcm: called a DICOM file but it is none; copy the series again")
    last.write_bytes(content[:-20])
    refusal(tmp_path / "s", "a/IM0004.dcm: 48 bytes of pixels are promised, 40 are there")
    assert [item.kind for item in list_series(tmp_path / "s")] == ["image", "damaged"]
    (tmp_path / "s" / "b").mkdir()
    last.rename(tmp_path / "s" / "b" / "IM0004.dcm")  # elsewhere: it belongs to something else
    assert read_volume(tmp_path / "s").array.shape == (6, 4, 4)


def test_empty_and_missing_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty", "no DICOM image in it; give the folder, DICOMDIR or zip that holds the series")
    with pytest.raises(DataError, match="none: there is no such file or folder"):
        read_dicom(tmp_path / "none")
    write_series(tmp_path / "s")
    with pytest.raises(DataError, match="channel 1 was asked for, it has 1"):
        read_volume(tmp_path / "s", channel=1)


def test_pydicom_warns_nobody_about_the_patient(tmp_path, recwarn, caplog):
    write_series(tmp_path / "s")
    for path in (tmp_path / "s").iterdir():  # a value that pydicom would quote in a warning: too long for its type
        content = path.read_bytes()
        path.write_bytes(content.replace(b"1.2.9\0", b"Quux^Z"))
    read_volume(tmp_path / "s")
    assert not recwarn.list
    assert "Quux" not in caplog.text


@pytest.mark.parametrize("name", ["../evil.dcm", "a/../../evil.dcm", "/etc/evil.dcm", "..\\evil.dcm", "C:\\evil.dcm"])
def test_a_zip_with_hostile_names_is_refused(name, tmp_path):
    write_series(tmp_path / "s", count=1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "s" / "IM0000.dcm", "fine.dcm")
        archive.writestr(name, b"\0" * 200)
    refusal(tmp_path / "a.zip", "a name in it points outside the zip; do not use it")


def test_zip_bombs_and_broken_zips_are_refused(tmp_path):
    bomb = zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED)
    with bomb, bomb.open("a.dcm", "w") as member:
        for _ in range(300):
            member.write(b"\0" * 2**20)
    refusal(tmp_path / "bomb.zip", "1 files of 0.3 GiB are promised by 0.3 MiB .a zip bomb")
    write_series(tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted((tmp_path / "s").iterdir()):
            archive.write(path, path.name)
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    refusal(tmp_path / "cut.zip", "a damaged zip; copy it again")
    (tmp_path / "flip.zip").write_bytes(content.replace(b"DICM", b"DICX", 1))  # fails its checksum
    refusal(tmp_path / "flip.zip", "IM0000.dcm: a damaged DICOM file .BadZipFile.")
    place = content.index(b"PK\x01\x02") + 8
    (tmp_path / "locked.zip").write_bytes(content[:place] + b"\1" + content[place + 1 :])
    refusal(tmp_path / "locked.zip", "encrypted; unpack it with its password")
    (tmp_path / "empty.zip").write_bytes(b"PK\5\6" + b"\0" * 18)
    assert is_zip_file(tmp_path / "empty.zip")
    refusal(tmp_path / "empty.zip", "no DICOM image in it")


def test_a_deflated_file_that_grows_without_end_is_refused(tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]  # preamble, DICM, length of the meta group
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(b"\0" * 2**20) for _ in range(300)) + packer.flush()
    (tmp_path / "b.dcm").write_bytes(content[:start] + bomb)
    refusal(tmp_path / "b.dcm", "grows to more than 256 MiB when unpacked")


@pytest.mark.parametrize("parts", [["..", "IM0000.dcm"], ["s", "..", "..", "x"], ["/etc/passwd"], ["C:", "x"]])
def test_a_dicomdir_that_points_outside_is_refused(parts, tmp_path):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MediaStorageDirectoryStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record, directory = Dataset(), Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.add_new("ReferencedFileID", "LO", parts)  # a type of text that pydicom does not check
    directory.file_meta, directory.DirectoryRecordSequence = meta, Sequence([record])
    directory.save_as(tmp_path / "DICOMDIR", implicit_vr=False, little_endian=True)
    content = (tmp_path / "DICOMDIR").read_bytes()
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + content if content[128:132] != b"DICM" else content)
    refusal(tmp_path / "DICOMDIR", "a name in it points outside its folder; give the folder itself")


def test_a_broken_dicomdir(tmp_path):
    write_series(tmp_path / "s", count=1, cosines=AXIAL)
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "s" / "IM0000.dcm").read_bytes()[:300])
    with pytest.raises(DataError, match="DICOMDIR: "):
        list_series(tmp_path / "DICOMDIR")[0].fitness and read_dicom(tmp_path / "DICOMDIR")
