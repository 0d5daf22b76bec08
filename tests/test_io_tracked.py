"""Tracked sequences: judged by files written here byte by byte, by hand arithmetic, and by SimpleITK's pixels."""

import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from tfmuscle.errors import DataError
from tfmuscle.io.tracked import Calibration, describe_sweep, read_calibration, read_sweep

IMAGE_TO_PROBE = np.array([[0.1, 0, 0, 1], [0, 0.2, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1.0]])
CALIBRATION = Calibration({"ImageToProbe": IMAGE_TO_PROBE})
TURN = np.array([[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1.0]])  # x -> y, y -> -x, then a shift
SHIFT = np.array([[1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1.0]])


def numbers(matrix):
    return " ".join(f"{value:.9g}" for value in np.asarray(matrix).ravel())


def write_sequence(path, frames, *, compressed=False, transforms=None, status=None, extra=(), change=()):
    """A MetaImage sequence; `change` replaces header lines by their key, `status` maps (frame, field) to a word."""
    content = np.ascontiguousarray(frames).tobytes()
    content = zlib.compress(content) if compressed else content
    count, rows, columns = frames.shape
    kinds = {"uint8": "MET_UCHAR", "int16": "MET_SHORT", "uint16": "MET_USHORT"}
    lines = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": frames.dtype.byteorder == ">",
        "CompressedData": compressed,
        "DimSize": f"{columns} {rows} {count}",
        "ElementSpacing": "1 1 1",
        "ElementType": kinds[frames.dtype.name],
        "UltrasoundImageOrientation": "MFA",
    }
    for number in range(count):
        for name, matrix in (transforms or {"ProbeToTracker": TURN}).items():
            lines[f"Seq_Frame{number:04d}_{name}Transform"] = numbers(matrix)
            lines[f"Seq_Frame{number:04d}_{name}TransformStatus"] = "OK"
        lines[f"Seq_Frame{number:04d}_Timestamp"] = 100 + 0.5 * number
        lines[f"Seq_Frame{number:04d}_ImageStatus"] = "OK"
    lines |= {f"Seq_Frame{number:04d}_{field}": word for (number, field), word in (status or {}).items()}
    lines |= dict(extra)
    lines |= dict(change)
    data = "LOCAL" if path.suffix == ".mha" else path.with_suffix(".raw").name
    header = "".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None)
    header = (header + f"ElementDataFile = {lines.get('ElementDataFile', data)}\n").encode()
    if data == "LOCAL":
        path.write_bytes(header + content)
    else:
        path.write_bytes(header)
        path.with_suffix(".raw").write_bytes(content)
    return path


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 255, (4, 3, 5)).astype(np.uint8)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "<i2", ">u2"])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_pixels_come_back(tmp_path, frames, compressed, dtype, suffix):
    path = write_sequence(tmp_path / f"sweep{suffix}", frames.astype(dtype), compressed=compressed)
    sweep = read_sweep(path, calibration=CALIBRATION)
    np.testing.assert_array_equal(sweep.frames, frames)
    assert sweep.frames.dtype == np.dtype(dtype)


def test_a_pixel_lies_where_hand_arithmetic_puts_it(tmp_path, frames):
    path = write_sequence(tmp_path / "sweep.mha", frames)
    sweep = read_sweep(path, calibration=CALIBRATION)
    # column 4, row 2: probe (0.4 + 1, 0.4 + 2, 3) = (1.4, 2.4, 3); tracker (-2.4 + 10, 1.4 + 20, 3 + 30), LPS; RAS:
    np.testing.assert_allclose(sweep.poses[1] @ (2, 4, 0, 1), (-7.6, -21.4, 33, 1), atol=1e-6)


def test_the_reference_is_taken_where_there_is_one_and_any_frame_on_request(tmp_path, frames):
    transforms = {"ProbeToTracker": TURN, "ReferenceToTracker": SHIFT}
    path = write_sequence(tmp_path / "sweep.mha", frames, transforms=transforms)
    by_reference = read_sweep(path, calibration=CALIBRATION).poses[0] @ (2, 4, 0, 1)
    np.testing.assert_allclose(by_reference, (-(7.6 - 5), -(21.4 - 6), 33 - 7, 1), atol=1e-6)  # against the shift
    by_tracker = read_sweep(path, calibration=CALIBRATION, frame="Tracker").poses[0] @ (2, 4, 0, 1)
    np.testing.assert_allclose(by_tracker, (-7.6, -21.4, 33, 1), atol=1e-6)


def test_frames_that_cannot_be_trusted_are_left_out(tmp_path, frames):
    status = {(0, "ProbeToTrackerTransformStatus"): "INVALID", (2, "ImageStatus"): "INVALID"}
    path = write_sequence(tmp_path / "sweep.mha", frames, status=status, extra={"Seq_Frame0003_Note": "x"}.items())
    np.testing.assert_array_equal(read_sweep(path, calibration=CALIBRATION).frames, frames[[1, 3]])
    assert describe_sweep(path).num_frames == 4
    unused = {(0, "StylusToTrackerTransformStatus"): "INVALID"}
    path = write_sequence(tmp_path / "stylus.mha", frames, status=unused)
    assert len(read_sweep(path, calibration=CALIBRATION).frames) == 4


@pytest.mark.parametrize("orientation, rows, columns", [("MF", 1, 1), ("UF", 1, -1), ("MN", -1, 1), ("UNA", -1, -1)])
def test_frames_are_turned_to_marked_far(tmp_path, frames, orientation, rows, columns):
    path = write_sequence(tmp_path / "sweep.mha", frames, change={"UltrasoundImageOrientation": orientation}.items())
    sweep = read_sweep(path, calibration=CALIBRATION)
    np.testing.assert_array_equal(sweep.frames, frames[:, ::rows, ::columns])


def test_clipping_moves_the_first_pixel(tmp_path, frames):
    path = write_sequence(tmp_path / "sweep.mha", frames)
    whole = read_sweep(path, calibration=CALIBRATION)
    clipped = read_sweep(path, calibration=Calibration(CALIBRATION.transforms, clip=(1, 2, 9, 2)))
    np.testing.assert_array_equal(clipped.frames, frames[:, 1:3, 2:4])
    np.testing.assert_allclose(clipped.poses[0] @ (0, 0, 0, 1), whole.poses[0] @ (1, 2, 0, 1))


def test_the_header_describes(tmp_path, frames):
    found = describe_sweep(write_sequence(tmp_path / "sweep.mha", frames))
    assert (found.num_frames, found.rows, found.columns, found.orientation) == (4, 3, 5, "MFA")
    assert found.transforms == ("ProbeToTracker",) and found.seconds == pytest.approx(1.5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"DimSize": "5 3"}, "DimSize is '5 3'"),
        ({"DimSize": "5 3 4000"}, "promises 60,000 bytes"),
        ({"DimSize": "5 3 2000000000"}, "promises 30,000,000,000 bytes"),
        ({"ElementType": "MET_STRING"}, "pixels of type STRING"),
        ({"ElementNumberOfChannels": 3}, "in colour"),
        ({"BinaryData": False}, "pixels as text"),
        ({"UltrasoundImageOrientation": "FM"}, "frames in FM order"),
        ({"ElementDataFile": "../elsewhere.raw"}, "a file beside it is needed"),
        ({"Seq_Frame0002_ProbeToTrackerTransform": "1 2 3"}, "ProbeToTracker of frame 2 is no 4x4 matrix"),
        ({"Seq_Frame0002_ProbeToTrackerTransform": numbers(np.zeros((4, 4)))}, "of frame 2 is no 4x4 matrix"),
        ({f"Seq_Frame000{n}_ImageStatus": "INVALID" for n in range(4)}, "none of its 4 frames"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, frames, change, message):
    path = write_sequence(tmp_path / "sweep.mha", frames, change=change.items())
    with pytest.raises(DataError, match=message):
        read_sweep(path, calibration=CALIBRATION)


def test_files_that_are_no_sequences_are_refused(tmp_path, frames):
    with pytest.raises(DataError, match="cannot be read"):
        read_sweep(tmp_path / "missing.mha")
    sitk.WriteImage(sitk.GetImageFromArray(frames), str(tmp_path / "volume.mha"))
    with pytest.raises(DataError, match="no tracked sequence"):
        read_sweep(tmp_path / "volume.mha")
    (tmp_path / "noise.mha").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(DataError, match="no whole MetaImage header"):
        read_sweep(tmp_path / "noise.mha")


def test_cut_off_and_damaged_pixels_are_refused(tmp_path, frames):
    path = write_sequence(tmp_path / "sweep.mha", frames, compressed=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="do not end where"):
        read_sweep(path, calibration=CALIBRATION)
    path.write_bytes(whole[:-30])
    with pytest.raises(DataError, match="ends before its last frame"):
        read_sweep(path, calibration=CALIBRATION)
    path.write_bytes(whole[:-4] + bytes(4))  # the checksum
    with pytest.raises(DataError, match="damaged pixels"):
        read_sweep(path, calibration=CALIBRATION)
    path = write_sequence(tmp_path / "more.mha", frames, compressed=True, change={"DimSize": "5 3 3"}.items())
    with pytest.raises(DataError, match="do not end where"):
        read_sweep(path, calibration=CALIBRATION)


def test_no_way_to_the_frame_of_reference(tmp_path, frames):
    path = write_sequence(tmp_path / "sweep.mha", frames)
    with pytest.raises(DataError, match=r"by ProbeToTracker; give the calibration \(ImageToProbe\)"):
        read_sweep(path)
    with pytest.raises(DataError, match="no way from Image to Phantom .* name another frame of reference"):
        read_sweep(path, calibration=CALIBRATION, frame="Phantom")
    with pytest.raises(DataError, match="end before the clip rectangle"):
        read_sweep(path, calibration=Calibration(CALIBRATION.transforms, clip=(3, 0, 1, 1)))


def xml(tmp_path, body, start="<A>"):
    path = tmp_path / "calibration.xml"
    path.write_text(f"{start}{body}</A>", encoding="utf-8")
    return path


def test_a_calibration_file_is_read(tmp_path):
    transform = f'<Transform From="Image" To="Probe" Matrix="{numbers(IMAGE_TO_PROBE)}"/>'
    settings = '<VolumeReconstruction OutputSpacing="0.5 0.6 0.7" ClipRectangleOrigin="1 2" ClipRectangleSize="3 4"/>'
    found = read_calibration(xml(tmp_path, transform + settings))
    np.testing.assert_allclose(found.transforms["ImageToProbe"], IMAGE_TO_PROBE)
    assert found.clip == (2, 1, 4, 3) and found.spacing == (0.5, 0.6, 0.7)


BOMB = '<!DOCTYPE A [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><A>'
OUTSIDE = '<!DOCTYPE A SYSTEM "file:///etc/passwd"><A>'


@pytest.mark.parametrize(
    "body, start, message",
    [
        ("&b;", BOMB, "declares a document type"),
        ("", OUTSIDE, "declares a document type"),
        ("<B>", "<A>", "not valid XML"),
        ("", "<A>", "holds no Transform"),
        ('<Transform From="Image" To="Probe" Matrix="1 2"/>', "<A>", "ImageToProbe is no 4x4 matrix"),
        (
            f'<Transform From="Image" To="Probe" Matrix="{numbers(IMAGE_TO_PROBE)}"/>'
            '<VolumeReconstruction OutputSpacing="0 1 1"/>',
            "<A>",
            "is not positive",
        ),
    ],
)
def test_bad_calibrations_are_refused(tmp_path, body, start, message):
    with pytest.raises(DataError, match=message):
        read_calibration(xml(tmp_path, body, start))
    with pytest.raises(DataError, match="cannot be read"):
        read_calibration(tmp_path / "missing.xml")


def test_real_sweeps_agree_with_simpleitk(data_dir):
    folder = data_dir / "ultrasound" / "tracked_sweeps"
    calibration = read_calibration(folder / "PlusDeviceSet_SpinePhantomFreehandReconstructionOnly.xml")
    for name in ("SpinePhantomFreehand", "BoneUltrasound_L14"):
        sweep = read_sweep(folder / f"{name}.igs.mha", calibration=calibration)
        judge = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}.igs.mha")))
        np.testing.assert_array_equal(sweep.frames, judge)
        # the tracker's rotations have determinant 1; the pixels of the calibration are 0.079 x 0.085 mm
        np.testing.assert_allclose(np.linalg.norm(sweep.poses[:, :3, 0], axis=1), 0.0790, atol=2e-4)
        np.testing.assert_allclose(np.linalg.norm(sweep.poses[:, :3, 1], axis=1), 0.0854, atol=2e-4)
