"""RTSTRUCT: synthetic contours judged by closed forms, a naive loop and OpenCV's contours; real ones by Matplotlib."""

import cv2
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from tfmuscle.errors import DataError
from tfmuscle.io.dicom_labels import label_object_kind, read_structure_set
from tfmuscle.io.dicom_labels.structure_set import fill
from tfmuscle.volume import Geometry, Volume

LPS = np.diag([-2.0, -0.5, 3.0, 1.0])  # RAS+ affine of an axial scan whose columns go left and rows to the back
LPS[:3, 3] = [60.0, 20.0, -300.0]
GRID = Geometry((40, 60, 5), LPS)
SQUARE = np.array([[4.5, 4.5], [4.5, 9.5], [9.5, 9.5], [9.5, 4.5]])


def write_set(path, structures, geometry=GRID):
    """Writes name -> list of (kind, index points `(N, 3)`)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientName, dataset.PatientID = "RTSTRUCT", "Quux^Zebulon", "PAT-4711-X"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber, drawn.ContourSequence = number, name, number, []
        for kind, index in contours:
            contour = Dataset()
            points = geometry.world(index) * [-1, -1, 1]
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.6f}" for value in points.reshape(-1)]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def closed(points, place):
    return "CLOSED_PLANAR", np.column_stack([points, np.full(len(points), float(place))])


def read(path, structures, geometry=GRID, reference=None, **options):
    return read_structure_set(write_set(path, structures, geometry), reference=reference or geometry, **options)[0]


def refusal(call, match):
    with pytest.raises(DataError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("Quux", "Zebulon", "4711"))


def naive(polygons, shape):
    """Even-odd by a loop over pixels and edges; centres must not lie on edges."""
    inside = np.zeros(shape, dtype=bool)
    for a, b in np.ndindex(shape):
        for polygon in polygons:
            for (a0, b0), (a1, b1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if (a0 > a) != (a1 > a) and b < b0 + (a - a0) * (b1 - b0) / (a1 - a0):
                    inside[a, b] ^= True
    return inside


@pytest.mark.parametrize("seed", range(6))
def test_polygons_as_a_naive_loop_fills_them(seed):
    chance = np.random.default_rng(seed)  # random corners: self-crossing, over the border of the image
    polygons = [chance.uniform(-6, 26, (chance.integers(3, 12), 2)) for _ in range(3)]
    filled, expected = fill(polygons, (20, 17)), naive(polygons, (20, 17))
    different = np.argwhere(filled != expected)  # centres within 0.005 voxels of an edge count as inside
    assert len(different) <= 3
    assert filled[tuple(different.T)].all()


def test_a_square_by_hand(tmp_path):
    masks = read(tmp_path / "rt", {"Lt Muscle": [closed(SQUARE, 2)]})
    assert list(masks) == ["muscle_left"]
    assert np.argwhere(masks["muscle_left"]).min(axis=0).tolist() == [5, 5, 2]
    assert np.argwhere(masks["muscle_left"]).max(axis=0).tolist() == [9, 9, 2]
    assert masks["muscle_left"].sum() == 25


def test_a_circle_has_its_area():
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    for radius in (10.3, 41.7):
        circle = 50 + radius * np.column_stack([np.cos(angle), np.sin(angle)])
        # pixels on the rim: Gauss's circle problem, far below one per unit of the radius
        assert fill([circle], (100, 100)).sum() == pytest.approx(np.pi * radius**2, abs=radius)


def test_holes_islands_keyholes_and_twins(tmp_path):
    hole, island = SQUARE[::-1] * 0.4 + 4.2, SQUARE + 20  # hole 6.0..8.0: its border counts as inside, one voxel is out
    keyhole = np.concatenate([SQUARE, SQUARE[:1], hole, hole[:1]])
    structures = {
        "hole": [closed(SQUARE, 1), closed(hole, 1)],
        "keyhole": [closed(keyhole, 1)],
        "islands": [closed(SQUARE, 1), closed(island, 1)],
        "twins": [closed(SQUARE, 1), closed(SQUARE, 1)],
        "nothing": [],
    }
    masks = read(tmp_path / "rt", structures)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "hole": 24, "keyhole": 24, "islands": 50, "twins": 25, "nothing": 0,
    }  # fmt: skip
    assert not masks["hole"][7, 7, 1]
    assert not masks["keyhole"][7, 7, 1]


@pytest.mark.parametrize("seed", range(3))
def test_contours_through_voxel_centres_come_back_exactly(tmp_path, seed):
    """The way rt-utils writes masks: OpenCV's outlines of the voxels, holes and single voxels too."""
    chance = np.random.default_rng(seed)
    masks = cv2.GaussianBlur(chance.normal(size=(*GRID.shape,)), (5, 5), 0) > 0.05
    contours = []
    for place in range(GRID.shape[2]):
        found, _ = cv2.findContours(masks[:, :, place].astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
        contours += [closed(contour[:, 0, ::-1], place) for contour in found]  # OpenCV's points are (column, row)
    assert (read(tmp_path / "rt", {"m": contours})["m"] == masks).all()


@pytest.mark.parametrize("orientation", ["LPS", "SPL", "RAI"])
def test_oblique_scans_and_turned_references(tmp_path, orientation):
    affine = LPS.copy()
    affine[:3, :3] = [[0.8, -0.6, 0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]] @ affine[:3, :3]
    grid = Geometry(GRID.shape, affine)
    expected = np.zeros(grid.shape, dtype=bool)
    expected[5:10, 5:10, 1:3] = True
    turned = Volume(expected, grid).reoriented(orientation)
    masks = read(tmp_path / "rt", {"x": [closed(SQUARE, 1), closed(SQUARE, 2)]}, grid, turned.geometry)
    assert (masks["x"] == turned.array).all()


def test_points_and_open_contours_are_named_and_left_out(tmp_path):
    said = []
    structures = {
        "marker": [("POINT", np.array([[3.0, 3.0, 1.0]]))],
        "both": [closed(SQUARE, 1), ("OPEN_PLANAR", np.array([[1.0, 1, 1], [2, 2, 1], [3, 5, 1]]))],
    }
    masks = read(tmp_path / "rt", structures, say=said.append)
    assert list(masks) == ["both"]
    assert masks["both"].sum() == 25
    assert len(said) == 2
    assert "marker: 1 points or open contours left out" in said[0]


def test_contours_of_another_scan_are_refused(tmp_path):
    def attempt(contours, match, reference=None):
        refusal(lambda: read(tmp_path / "rt", {"x": contours}, reference=reference), match)

    attempt([closed(SQUARE, 1.3)], "lie between the slices of the scan .0.90 mm off, slices are 3.00 mm apart")
    slanted = np.column_stack([SQUARE, [1.0, 1.0, 2.0, 2.0]]), np.column_stack([SQUARE, [1.0, 2.0, 2.0, 1.0]])
    attempt([("CLOSED_PLANAR", points) for points in slanted], "not parallel to the slices")
    attempt([closed(SQUARE, 50)], "outside the scan's grid; give")
    attempt([closed(SQUARE, place) for place in (0, 2, 4)], "one in|only in one of 2 slices")
    assert read(tmp_path / "ok", {"x": [closed(SQUARE, 1.09)]})["x"].sum() == 25  # a tenth of the distance is allowed


def changed(path, change):
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("a contour without usable points", lambda d, c: setattr(c, "ContourData", ["1", "2"])),
        ("a contour without usable points", lambda d, c: setattr(c, "NumberOfContourPoints", 9)),
        ("a contour without usable points", lambda d, c: delattr(c, "ContourData")),
        ("a structure that is not described", lambda d, c: setattr(d.ROIContourSequence[0], "ReferencedROINumber", 8)),
        ("describes no structure", lambda d, c: setattr(d, "StructureSetROISequence", [])),
        ("a damaged DICOM file", lambda d, c: delattr(d.StructureSetROISequence[0], "ROINumber")),
    ],
)
def test_a_broken_set_is_one_line(tmp_path, match, change):
    path = write_set(tmp_path / "rt", {"x": [closed(SQUARE, 1)]})
    changed(path, lambda dataset: change(dataset, dataset.ROIContourSequence[0].ContourSequence[0]))
    refusal(lambda: read_structure_set(path, reference=GRID), f"{match}.*; ")


def test_a_structure_is_not_called_after_the_patient(tmp_path):
    masks = read(tmp_path / "rt", {"Zebulon": [closed(SQUARE, 1)], "Tibia R": [closed(SQUARE, 1)], "tibia_right": []})
    assert list(masks) == ["structure_1", "tibia_right", "tibia_right_2"]
    assert label_object_kind(tmp_path / "rt") == "structure set"
    refusal(lambda: read_structure_set(tmp_path / "no", reference=GRID), "no such file; check")


def scan_grid(image, first, count, step):
    header = pydicom.dcmread(image, stop_before_pixels=True)
    row, column = header.PixelSpacing
    affine = np.diag([-column, -row, step, 1.0])
    affine[:3, 3] = [-header.ImagePositionPatient[0], -header.ImagePositionPatient[1], first]
    return Geometry((header.Columns, header.Rows, count), affine)


def test_real_sets_as_matplotlib_fills_them(data_dir):
    base = data_dir / "dicom"
    sets = [
        (base / "rtutils" / "empty" / "dummy_rt.dcm", base / "rtutils" / "mock_data" / "ct_1.dcm", 60.0, 3, 5.0, 4),
        (base / "rtstruct_dicompyler" / "example_data" / "rtss.dcm",
         base / "rtstruct_dicompyler" / "example_data" / "ct.0.dcm", -170.44, 120, 3.0, 5),
    ]  # fmt: skip
    for path, image, first, count, step, number in sets:  # `number`: a structure without holes or islands in islands
        grid = scan_grid(image, first, count, step)
        masks, _ = read_structure_set(path, reference=grid)
        mask = list(masks.values())[number - 1]
        expected = np.zeros(grid.shape, dtype=bool)
        for contour in pydicom.dcmread(path).ROIContourSequence[number - 1].ContourSequence:
            index = grid.index(np.array(contour.ContourData, dtype=float).reshape(-1, 3) * [-1, -1, 1])
            low, high = index.min(axis=0)[:2].astype(int), index.max(axis=0)[:2].astype(int) + 2
            centres = np.stack(np.mgrid[low[0] : high[0], low[1] : high[1]], axis=-1)
            inside = Polygon(index[:, :2], closed=False).contains_points(centres.reshape(-1, 2))
            expected[low[0] : high[0], low[1] : high[1], round(index[0, 2])] ^= inside.reshape(centres.shape[:2])
        assert mask.sum() > 1000
        assert (expected & ~mask).sum() <= 0.001 * mask.sum()
        assert (mask != expected).sum() <= 0.01 * mask.sum()  # centres on contours, which Matplotlib leaves to rounding
