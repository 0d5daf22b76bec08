"""Draws one phantom through every input format tfmuscle reads: `python docs/inputs.py`. Nothing in it is a patient.

Each panel is a file written here and read back by tfmuscle: scans as NIfTI, DICOM and NRRD, labels as binary masks,
surfaces, DICOM SEG and RTSTRUCT, and ultrasound as a tracked sweep, compounded.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.measure import find_contours

from tfmuscle.compounding import compound, sweep_geometry
from tfmuscle.io import read_volume, write_mesh, write_volume
from tfmuscle.io.dicom_labels import write_segmentation
from tfmuscle.io.tracked import read_sweep
from tfmuscle.label_sources import masks
from tfmuscle.phantom import Phantom, make_phantom
from tfmuscle.report import figure_png
from tfmuscle.surfaces import surface
from tfmuscle.volume import Geometry, Volume

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))  # the tests know how to write the formats that tfmuscle only reads
from dicom_files import write_slice  # noqa: E402
from test_io_dicom_structure_sets import closed, write_set  # noqa: E402
from test_io_tracked import write_sequence  # noqa: E402

SHOWN = ("vastus_lateralis_left", "rectus_femoris_left", "biceps_femoris_long_head_left", "femur_left")
LPS = np.diag([-1.0, -1.0, 1.0])


def main() -> None:
    """Draws both pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        thigh = as_integers(make_phantom("thigh", seed=5))
        draw_scans(Path(scratch), thigh)
        draw_labels(Path(scratch), thigh)
        draw_ultrasound(Path(scratch))


def as_integers(made: Phantom) -> Phantom:
    """The phantom as a scanner stores it: axial slices, columns to the left, rows to the back, whole numbers."""
    image, labels = made.image.reoriented("LPS"), made.labels.reoriented("LPS")
    array = image.array - image.array.min()
    return Phantom(
        image.with_array((1000 * array / array.max()).astype(np.int16)), labels, made.label_map, made.volumes_ml
    )


def write_dicom(folder: Path, image: Volume) -> Path:
    """Writes one file a slice."""
    folder.mkdir()
    grid = image.geometry
    row, column = (LPS @ grid.affine[:3, axis] / grid.spacing[axis] for axis in (0, 1))
    for number in range(grid.shape[2]):
        write_slice(
            folder / f"{number:03d}.dcm",
            np.ascontiguousarray(image.array[:, :, number].T),
            position=LPS @ grid.world((0, 0, number)),
            cosines=(row, column),
            PixelSpacing=[grid.spacing[1], grid.spacing[0]],
            SliceThickness=grid.spacing[2],
            InstanceNumber=number + 1,
        )
    return folder


def draw_scans(scratch: Path, thigh: Phantom) -> None:
    """Draws the same slice from three kinds of files."""
    for name in ("scan.nii.gz", "scan.nrrd", "scan.mha"):
        write_volume(scratch / name, thigh.image)
    write_dicom(scratch / "dicom", thigh.image)
    panels = [
        (read_volume(scratch / name).array[:, :, 6], None, title)
        for name, title in (
            ("scan.nii.gz", "NIfTI: scan.nii.gz"),
            ("dicom", "DICOM: a folder, zip or DICOMDIR"),
            ("scan.nrrd", "NRRD: scan.nrrd"),
            ("scan.mha", "MetaImage: scan.mha"),
        )
    ]
    draw(panels, HERE / "input_scans.png")


def draw_labels(scratch: Path, thigh: Phantom) -> None:
    """Draws the same four structures from four kinds of labels."""
    grid, ids = thigh.labels.geometry, {thigh.label_map.id_of(name): name for name in SHOWN}
    chosen = {name: thigh.labels.array == key for key, name in ids.items()}
    kinds: dict[str, list[Path]] = {"binary masks (NIfTI)": [], "surfaces (PLY, STL)": []}
    for name, mask in chosen.items():
        write_volume(scratch / f"{name}.nii.gz", thigh.labels.with_array(mask.astype(np.uint8)))
        write_mesh(scratch / f"{name}.ply", surface(mask, grid))
        kinds["binary masks (NIfTI)"].append(scratch / f"{name}.nii.gz")
        kinds["surfaces (PLY, STL)"].append(scratch / f"{name}.ply")
    write_segmentation(scratch / "seg.dcm", thigh.labels, thigh.label_map, series=scratch / "dicom")
    contours = {
        name: [
            closed(contour, number)
            for number in range(grid.shape[2])
            for contour in find_contours(np.pad(mask[:, :, number], 1).astype(float), 0.5)
        ]
        for name, mask in chosen.items()
    }
    contours = {name: [(kind, points - (1, 1, 0)) for kind, points in found] for name, found in contours.items()}
    kinds["DICOM SEG"] = [scratch / "seg.dcm"]
    kinds["DICOM RTSTRUCT"] = [write_set(scratch / "rt.dcm", contours, grid)]
    panels = []
    for title, files in kinds.items():
        found = {name: mask for file in files for name, mask, _ in masks(file, grid) if name in SHOWN}
        colours = {name: np.array(thigh.label_map.colour(name)) / 255 for name in SHOWN}
        drawn = [(found[name][:, :, 6], colours[name]) for name in SHOWN]
        panels.append((thigh.image.array[:, :, 6], drawn, title))
    draw(panels, HERE / "input_labels.png")


def draw_ultrasound(scratch: Path) -> None:
    """Draws a frame of a tracked sweep, and a cut through the compounded volume across the frames."""
    made = make_phantom("ultrasound", seed=5).image
    array = made.array - made.array.min()
    array = (250 * array / array.max()).astype(np.uint8)
    count = made.geometry.shape[2]
    frames = np.ascontiguousarray(np.moveaxis(array, 2, 0).transpose(0, 2, 1))
    spacing = made.geometry.spacing
    poses = []
    for number in range(count):
        pose = np.diag([spacing[0], spacing[1], 1.0, 1.0])
        pose[:3, 3] = (0.1 * number, 0, spacing[2] * number)  # the hand drifts sideways
        poses.append(pose)
    file = write_posed(scratch / "sweep.igs.mha", frames, poses)
    sweep = read_sweep(file)
    grid: Geometry = sweep_geometry(sweep, spacing=max(spacing[0], 0.8))
    volume = compound(sweep, geometry=grid).image.array
    middle = volume.shape[0] // 2
    step = grid.spacing[2] / grid.spacing[1]
    figure = Figure(figsize=(8, 3), layout="constrained")
    one, two = figure.subplots(1, 2)
    one.imshow(frames[count // 2], cmap="gray")
    one.set_title(f"one of {count} tracked frames", fontsize=8)
    two.imshow(volume[middle], cmap="gray", aspect=1 / step)
    two.set_title("compounded volume, cut along the sweep", fontsize=8)
    for axes in (one, two):
        axes.set_axis_off()
    (HERE / "input_ultrasound.png").write_bytes(figure_png(figure, dpi=90))


def write_posed(path: Path, frames: np.ndarray, poses: list[np.ndarray]) -> Path:
    """Writes a tracked sequence with a pose of its own for every frame."""
    extra = {}
    for number, pose in enumerate(poses):
        extra[f"Seq_Frame{number:04d}_ImageToReferenceTransform"] = " ".join(f"{value:.9g}" for value in pose.ravel())
        extra[f"Seq_Frame{number:04d}_ImageToReferenceTransformStatus"] = "OK"
    return write_sequence(path, frames, extra=extra.items())


def draw(panels: list, path: Path) -> None:
    """Draws slices side by side, structures in colour."""
    figure = Figure(figsize=(3.1 * len(panels), 2.1), layout="constrained")
    for axes, (plane, structures, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        show(axes, plane.T, structures, title)
    path.write_bytes(figure_png(figure, dpi=90))


def show(axes: Axes, plane: np.ndarray, structures: list | None, title: str) -> None:
    """Draws one slice."""
    grey = np.clip(plane / np.percentile(plane, 99.5), 0, 1)
    colours = np.repeat(grey[..., np.newaxis], 3, axis=2)
    for mask, colour in structures or []:
        colours[mask.T] = 0.45 * colours[mask.T] + 0.55 * colour
    axes.imshow(colours)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


if __name__ == "__main__":
    main()
