"""Draws the pictures of docs/data.md and docs/measure.md from phantoms: `python docs/figures.py`.

Nothing in them is a patient.
"""

import tempfile
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfmuscle.config import DataSpec
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.measuring import find_flags, measure_structures
from tfmuscle.phantom import make_phantom
from tfmuscle.records import read_index, read_shard
from tfmuscle.report import figure_png
from tfmuscle.report.measurements import area_figures, flagged_slices
from tfmuscle.subjects import read_dataset
from tfmuscle.volume import Volume
from tfmuscle.workflows.building import build_records
from tfmuscle.workflows.data import phantom, plan_spec

HERE = Path(__file__).parent
KINDS = {
    "slices": ("thigh", {"kind": "slices", "size": (96, 192), "spacing": (8.0, 2.5, 2.5)}),
    "stacks": ("thigh", {"kind": "stacks", "depth": 5, "size": (96, 192), "spacing": (8.0, 2.5, 2.5)}),
    "volumes": ("thigh", {"kind": "volumes", "depth": 16, "size": (64, 64), "spacing": (8.0, 3.0, 3.0)}),
    "sequences": ("ultrasound", {"kind": "sequences", "depth": 3, "size": (128, 128), "orientation": None}),
}


def main() -> None:
    """Draws every picture."""
    with tempfile.TemporaryDirectory() as scratch:
        for kind, (limb, settings) in KINDS.items():
            sample, spec = middle_sample(Path(scratch), kind, limb, settings)
            draw(sample, spec, HERE / f"record_{kind}.png")
    draw_measures(HERE / "measure_flags.png", HERE / "measure_areas.png")


def draw_measures(flags_path: Path, areas_path: Path) -> None:
    """Draws what `tfmuscle measure` shows of a thigh into which two mistakes were drawn: docs/measure.md."""
    made = make_phantom("thigh", seed=3, contrast="dixon")
    labels, key = made.labels.array.copy(), made.label_map.id_of
    middle = labels.shape[2] // 2
    stray = labels[:, :, middle : middle + 2]
    stray[stray == key("gracilis_right")] = key("gracilis_left")  # a piece under the other side's name
    upper = labels[:, :, -3:]
    upper[upper == key("sartorius_left")] = 0
    volume = Volume(labels, made.labels.geometry)
    structures = measure_structures(volume, made.label_map)
    wrong = [flag for flag in find_flags(structures, made.label_map) if flag.kind in ("side", "pieces")]
    water = Volume(made.image.array[..., 0], made.image.geometry)
    for path, figure in (
        (flags_path, flagged_slices(water, volume, wrong, label_map=made.label_map)),
        (areas_path, area_figures(structures)[0]),
    ):
        path.write_bytes(figure_png(figure, dpi=80))


def middle_sample(scratch: Path, kind: str, limb: str, settings: dict) -> tuple[dict, DataSpec]:
    """Builds records of one phantom and returns the sample with most labelled voxels."""
    dataset = scratch / limb
    if not dataset.exists():
        phantom(dataset, subjects=1, seed=3, kind=limb)
    records = scratch / kind
    spec = plan_spec(read_dataset(dataset), settings | {"folds": 1})
    build_records(dataset, records, spec)
    index = read_index(records)
    subject_id = next(iter(index.usable))
    samples = read_shard(records / index.path_of(subject_id), spec)
    return max(samples, key=lambda sample: np.count_nonzero(sample["labels"] > 0)), spec


def draw(sample: dict, spec: DataSpec, path: Path) -> None:
    """Draws the slices of a sample, and its labels where it has them."""
    image, labels = sample["image"], sample["labels"]
    if spec.is_volumetric:
        planes = list(range(0, spec.depth, max(1, spec.depth // 4)))[:4]
        pairs = [(image[plane, ..., 0], labels[plane], f"slice {plane + 1} of {spec.depth}") for plane in planes]
    else:
        middle = spec.depth // 2
        names = [f"channel {plane + 1}: slice {plane - middle:+d}" for plane in range(spec.depth)]
        names[middle] = "the labelled slice" if spec.depth == 1 else f"channel {middle + 1}: the labelled slice"
        pairs = [(image[..., plane], labels if plane == middle else None, names[plane]) for plane in range(spec.depth)]
    panels = pairs + ([(image[..., 0], None, "image alone")] if spec.depth == 1 else [])
    height, width = spec.size
    figure = Figure(figsize=(2.6 * len(panels), 2.6 * height / width + 0.5), layout="constrained")
    for axes, (plane, mask, title) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        show(axes, plane, mask, spec.label_map, title)
    path.write_bytes(figure_png(figure, dpi=90))


def show(axes: Axes, image: np.ndarray, labels: np.ndarray | None, label_map: LabelMap, title: str) -> None:
    """Draws one slice with its labels on top."""
    low, high = np.percentile(image, (1, 99.5))
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    colours = np.repeat(grey[..., np.newaxis], 3, axis=2)
    if labels is not None:
        for number, name in enumerate(label_map.structures, start=1):
            tint = np.array(label_map.colour(name)) / 255
            colours[labels == number] = 0.55 * colours[labels == number] + 0.45 * tint
        colours[labels == IGNORE] = 0.5
    axes.imshow(colours)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


if __name__ == "__main__":
    main()
