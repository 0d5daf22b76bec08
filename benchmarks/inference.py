"""Segmenting one scan against other programs: seconds and memory, in one run.

    python benchmarks/inference.py --torch-python VENV/bin/python --work FOLDER --slices 400 --rounds 3

`VENV` is another environment with PyTorch for the CPU, `segmentation-models-pytorch` and `nnunetv2`. The report is
Markdown on standard output; everything measured is in `FOLDER/measured.json`.

What is compared. One NIfTI file in, one label file on its grid out; imports, loading, conversion and compilation are
done before, on a scan of a few slices, and reported apart as start-up.

* A ResNet34 U-Net of five classes on slices of 256 x 256, without mirroring: tfmuscle with each engine, and
  `segmentation_models_pytorch.Unet("resnet34")` with the shortest honest code around it (nibabel, min-max, bilinear
  resizing on the way in, bilinear probabilities and arg-max on the way out). Both have random weights and 24.4 M
  parameters; the PyTorch encoder activates after its sums, ours before. The scan has 512 x 512 pixels a slice.
* A 3D network as nnU-Net plans it, the same random weights on both sides (`nnunet_weights.py`): nnU-Net's own predictor
  and tfmuscle with each engine, windows of 32 x 128 x 128 half overlapping, Gaussian blending of logits, no mirroring.
  The scan is the middle 256 x 256 pixels of the first slices.

Labels: each engine against Keras on the short scan, with the margin (highest minus second probability) of Keras where
they differ, and nnU-Net against tfmuscle on the whole 3D scan.

How. Every measurement is a process of its own that may use all cores; sides alternate A B C C B A, so that a busy
machine is busy for all. Peak memory is the kernel's figure for the process, start-up included. The scan is synthetic
(`scans.py`).

Two Python environments run this one file, so whatever only one of them has is imported by the function that needs it.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CLASSES, SIZE, BATCH = 5, 256, 8
WARM_UP_SLICES = 8
PATCH, SLICES_3D = (32, 128, 128), 64
RESNET, PLANNED = "resnet34_unet", "nnunet_3d"
ENGINES = {RESNET: ("keras", "xla", "onnx", "openvino"), PLANNED: ("keras", "onnx", "openvino")}
"""XLA is left out in 3D, where it takes minutes a window."""
SMP, NNUNET = "segmentation-models-pytorch", "nnU-Net"
RIVAL = {RESNET: SMP, PLANNED: NNUNET}
WIDTHS = (32, 64, 128, 256, 320)
STRIDES = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
KERNELS = [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
"""Of the network shared with nnU-Net: its rules for thick slices, five levels."""
ENCODER_OF_NNUNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def main() -> None:
    options = _options()
    work = Path(options.work).resolve()
    if options.side:
        measure(options.side, work)
        return
    if not options.torch_python:
        raise SystemExit("name the rivals' environment with --torch-python")
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, options.slices)
    _run(options.torch_python, "weights", work)
    _run(sys.executable, "copy", work)
    wanted = [name for name in options.networks.split(",") if name]
    sides = [side for name in wanted for side in [*(f"{name} {engine}" for engine in ENGINES[name]), RIVAL[name]]]
    measured: dict[str, list[dict]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            measured[side].append(_run(options.torch_python if side in (SMP, NNUNET) else sys.executable, side, work))
            print(f"{side}: {measured[side][-1]}", file=sys.stderr, flush=True)
    (work / "measured.json").write_text(json.dumps(measured, indent=1))
    agreements = [_run(sys.executable, f"agreement {name}", work)["text"] for name in wanted]
    print(report(measured, options.slices, [*agreements, *([against_nnunet(work)] if PLANNED in wanted else [])]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="python of an environment with PyTorch and the rivals")
    parser.add_argument("--work", required=True, help="folder for everything")
    parser.add_argument("--slices", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", default=f"{RESNET},{PLANNED}", help="which of the two, with a comma between")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(python: str, side: str, work: Path) -> dict:
    """Starts this file in a process of its own and returns what it printed last."""
    words = [python, __file__, "--side", side, "--work", str(work)]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "nnUNet_raw": "", "nnUNet_preprocessed": "", "nnUNet_results": ""}
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | quiet, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(side: str, work: Path) -> None:
    """Warms up on a few slices, segments the scan once and prints what it took."""
    if side in ("weights", "copy"):
        make_weights(work) if side == "weights" else keep_weights(work)
        print("{}")
        return
    if side.startswith("agreement"):
        print(json.dumps({"text": agreement(side.split()[1], work)}))
        return
    starts: dict[str, Callable[[Path], Callable[[Path, Path], None]]] = {SMP: smp_side, NNUNET: nnunet_side}
    began = time.perf_counter()
    segment = starts[side](work) if side in starts else tfmuscle_side(side, work)
    flat = side == SMP or side.startswith(RESNET)
    segment(work / ("few.nii.gz" if flat else "few_3d.nii.gz"), work / "few_labels.nii.gz")
    start_up, began = time.perf_counter() - began, time.perf_counter()
    segment(work / ("scan.nii.gz" if flat else "scan_3d.nii.gz"), work / f"labels_{side.replace(' ', '_')}.nii.gz")
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "start_up": start_up, "peak_gib": peak, "load": os.getloadavg()[0]}))


def prepare(work: Path, slices: int) -> None:
    """Makes the scan, a short one, and the run of tfmuscle; existing ones stay."""
    import nibabel as nib
    from scans import SPACING, make_scans

    from tfmuscle import models
    from tfmuscle.config import DataSpec, Supervised, TrainConfig
    from tfmuscle.labels import LabelMap

    make_scans(work / "scans", 1, (slices, 512, 512))
    scan = nib.load(next((work / "scans" / "imagesTr").iterdir()))
    nib.save(scan, work / "scan.nii.gz")
    nib.save(scan.slicer[..., :WARM_UP_SLICES], work / "few.nii.gz")
    nib.save(scan.slicer[128:384, 128:384, :SLICES_3D], work / "scan_3d.nii.gz")
    nib.save(scan.slicer[192:320, 192:320, : PATCH[0]], work / "few_3d.nii.gz")
    label_map = LabelMap({number: f"bone_{number}" for number in range(1, CLASSES)})
    nnunet = {"normalisation": "zscore_all", "resampling": "nnunet", "blend": "logits"}
    flat = DataSpec(label_map, kind="slices", size=(SIZE, SIZE), resize=True, normalisation="minmax")
    deep = DataSpec(label_map, kind="volumes", size=PATCH[1:], depth=PATCH[0], spacing=SPACING, **nnunet)
    planned = {"strides": STRIDES, "kernels": KERNELS, "filters": 32, "max_filters": 320, "deep_supervision": True}
    for name, network, spec, chosen in ((RESNET, RESNET, flat, {}), (PLANNED, "unet", deep, planned)):
        run = work / name
        if not (run / "best.keras").exists():
            run.mkdir(exist_ok=True)
            spec.save(run / "spec.json")
            TrainConfig(model=network, recipe=Supervised(augmentation="none")).save(run / "train.json")
            models.build(network, spec.input_shape, CLASSES, **chosen).save(run / "best.keras")
            (run / "about.json").write_text("{}")


def keep_weights(work: Path) -> None:
    """Puts nnU-Net's weights into our run."""
    from nnunet_weights import copy_weights

    from tfmuscle.inference import load_run

    model = load_run(work / PLANNED).model
    copy_weights(np.load(work / "weights.npz"), model)
    model.save(work / PLANNED / "best.keras")


def tfmuscle_side(side: str, work: Path) -> Callable[[Path, Path], None]:
    from tfmuscle.inference import load_run, predict_volume, with_engine
    from tfmuscle.io import read_volume, write_volume

    name, engine = side.split()
    run = with_engine(load_run(work / name), engine)

    def segment(scan: Path, out: Path) -> None:
        write_volume(out, predict_volume(run, read_volume(scan), mirror=False))

    return segment


def agreement(name: str, work: Path) -> str:
    """Says how the labels of each engine differ from those of Keras on the short scan."""
    from tfmuscle.inference import load_run, predict_probabilities, with_engine
    from tfmuscle.io import read_volume

    scan = read_volume(work / ("few.nii.gz" if name == RESNET else "few_3d.nii.gz"))
    run = load_run(work / name)
    expected = predict_probabilities(run, scan, mirror=False).array
    ranked = np.sort(expected, axis=-1)
    margin, lines = ranked[..., -1] - ranked[..., -2], []
    for engine in ENGINES[name][1:]:
        found = predict_probabilities(with_engine(run, engine), scan, mirror=False).array
        differs = found.argmax(-1) != expected.argmax(-1)
        widest = float(margin[differs].max()) if differs.any() else 0.0
        lines.append(
            f"* {name} by {engine}: {100 * (1 - differs.mean()):.4f} % of {differs.size:,} labels as Keras', widest"
            f" margin where not {widest:.1e}; largest difference of a probability {np.abs(found - expected).max():.1e}"
        )
    return "\n".join(lines)


def smp_side(work: Path) -> Callable[[Path, Path], None]:
    import nibabel as nib
    import torch
    from torch.nn.functional import interpolate

    try:
        import segmentation_models_pytorch as smp
    except RuntimeError:  # torchvision from PyPI lacks its compiled part beside PyTorch for the CPU; unused here
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import segmentation_models_pytorch as smp

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = smp.Unet("resnet34", encoder_weights=None, in_channels=3, classes=CLASSES).eval()

    def segment(scan: Path, out: Path) -> None:
        image = nib.load(scan)
        array = np.asanyarray(image.dataobj)
        low, span = float(array.min()), float(array.max() - array.min())
        labels = np.zeros(array.shape, np.uint8)
        with torch.inference_mode():
            for first in range(0, array.shape[2], BATCH):
                batch = torch.from_numpy((array[..., first : first + BATCH].astype(np.float32) - low) / span)
                batch = interpolate(batch.permute(2, 0, 1)[:, None], (SIZE, SIZE), mode="bilinear", antialias=True)
                probabilities = model(batch.expand(-1, 3, -1, -1)).softmax(1)
                probabilities = interpolate(probabilities, array.shape[:2], mode="bilinear")
                labels[..., first : first + BATCH] = probabilities.argmax(1).permute(1, 2, 0).numpy()
        nib.save(nib.Nifti1Image(labels, image.affine), out)

    return segment


def nnunet_network():
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    torch.manual_seed(0)
    return PlainConvUNet(1, num_classes=CLASSES, deep_supervision=True, **_architecture(torch))


def _architecture(torch=None) -> dict:
    """Returns the network's settings; as names, as a plan has them, without `torch`."""
    levels = len(WIDTHS)
    return {
        "n_stages": levels,
        "features_per_stage": list(WIDTHS),
        "conv_op": torch.nn.Conv3d if torch else "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": KERNELS,
        "strides": STRIDES,
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": torch.nn.InstanceNorm3d if torch else "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": torch.nn.LeakyReLU if torch else "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def make_weights(work: Path) -> None:
    """Writes random weights for both programs."""
    state = nnunet_network().state_dict()
    np.savez(work / "weights.npz", **{name: value.numpy() for name, value in state.items()})


def nnunet_side(work: Path) -> Callable[[Path, Path], None]:
    import torch
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = nnunet_network()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in np.load(work / "weights.npz").items()})
    network.decoder.deep_supervision = False  # as nnU-Net's trainer does for prediction
    reader = NibabelIO()
    spacing = reader.read_images([str(work / "scan_3d.nii.gz")])[1]["spacing"]
    manager = PlansManager(_plan([float(value) for value in spacing]))
    planned = manager.get_configuration("3d_fullres")
    names = {"background": 0} | {f"bone_{number}": number for number in range(1, CLASSES)}
    dataset = {"channel_names": {"0": "T1"}, "labels": names, "file_ending": ".nii.gz", "numTraining": 1}
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False, perform_everything_on_device=False,
        device=torch.device("cpu"), verbose=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(network, manager, planned, [network.state_dict()], dataset, "nnUNetTrainer", None)

    def segment(scan: Path, out: Path) -> None:
        image, properties = reader.read_images([str(scan)])
        labels = predictor.predict_single_npy_array(image, properties)
        reader.write_seg(labels, str(out), properties)

    return segment


def _plan(spacing: list[float]) -> dict:
    """Returns a plan of nnU-Net for one 3D network at the scan's own spacing."""
    kinds = ("data", "seg", "probabilities")
    resampling = {f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in kinds}
    orders = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    keywords = {
        "resampling_fn_data_kwargs": orders,
        "resampling_fn_seg_kwargs": orders | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": orders | {"order": 1},
    }
    architecture = {
        "network_class_name": ENCODER_OF_NNUNET,
        "arch_kwargs": _architecture(),
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = resampling | keywords | {
        "data_identifier": "plans_3d", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(PATCH), "median_image_size_in_voxels": [SLICES_3D, 256.0, 256.0], "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False], "batch_dice": False,
        "architecture": architecture,
    }  # fmt: skip
    return {
        "dataset_name": "Dataset001_Benchmark", "plans_name": "plans", "configurations": {"3d_fullres": configuration},
        "original_median_spacing_after_transp": spacing, "original_median_shape_after_transp": [SLICES_3D, 256, 256],
        "image_reader_writer": "NibabelIO", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "none", "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }  # fmt: skip


def against_nnunet(work: Path) -> str:
    """Says how many voxels nnU-Net and tfmuscle label alike with the same weights."""
    import nibabel as nib

    files = [work / f"labels_{side.replace(' ', '_')}.nii.gz" for side in (NNUNET, f"{PLANNED} keras")]
    one, other = (np.asanyarray(nib.load(file).dataobj) for file in files)
    return f"* {PLANNED} against nnU-Net with the same weights: {100 * (one == other).mean():.4f} % of the labels alike"


def report(measured: dict[str, list[dict]], slices: int, notes: list[str]) -> str:
    """Returns the table; ratios are to the PyTorch side of the same network, above 1 where tfmuscle is faster."""
    lines = [
        f"{RESNET}: one scan of 512 x 512 x {slices}; {PLANNED}: of 256 x 256 x {SLICES_3D}. {platform.machine()},"
        f" {os.cpu_count()} cores, Python {platform.python_version()}; medians of"
        f" {len(next(iter(measured.values())))} rounds.",
        "",
        "| program | seconds a scan | from - to | peak GiB | start-up s | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    medians = {side: statistics.median(row["seconds"] for row in rows) for side, rows in measured.items()}
    for side, rows in measured.items():
        rival = RIVAL.get(side.split()[0], side)
        seconds = sorted(row["seconds"] for row in rows)
        peak, start = (statistics.median(row[key] for row in rows) for key in ("peak_gib", "start_up"))
        ratio = f"{medians[rival] / medians[side]:.2f}" if rival in medians else ""
        name = side if side == rival else f"tfmuscle, {side.replace(' ', ', ')}"
        spread = f"{seconds[0]:.1f} - {seconds[-1]:.1f}"
        lines.append(f"| {name} | {medians[side]:.1f} | {spread} | {peak:.2f} | {start:.0f} | {ratio} |")
    return "\n".join([*lines, "", *notes])


if __name__ == "__main__":
    main()
