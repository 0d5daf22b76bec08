"""Segmenting one scan against other programs: seconds and memory, in one run.

    python benchmarks/inference.py --torch-python VENV/bin/python --work FOLDER --slices 400 --rounds 3

`VENV` is another environment with PyTorch for the CPU, `segmentation-models-pytorch`, and for the last rows `nnunetv2`.
The report is Markdown on standard output; everything measured is in `FOLDER/measured.json`.

What is compared. One NIfTI file in, one label file on its grid out; imports, loading, conversion and compilation are
done before, on a scan of a few slices, and reported apart as start-up.

* A ResNet34 U-Net of five classes on slices of 256 x 256, without mirroring: tfmuscle with each engine, and
  `segmentation_models_pytorch.Unet("resnet34")` with the shortest honest code around it (nibabel, min-max, bilinear
  resizing on the way in, bilinear probabilities and arg-max on the way out). Both have random weights and 24.4 M
  parameters; the PyTorch encoder activates after its sums, ours before.
* nnU-Net's own predictor and tfmuscle with the same 2D network and the same weights (`nnunet_weights.py`), windows of
  256 x 256, Gaussian blending of logits, no mirroring; there the labels are compared too.

How. Every measurement is a process of its own that may use all cores; sides alternate A B C C B A, so that a busy
machine is busy for all. Peak memory is the kernel's figure for the process, start-up included. The scan is synthetic
(`scans.py`), of 512 x 512 pixels a slice.

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
OURS = ("keras", "xla", "onnx", "openvino")
SMP = "segmentation-models-pytorch"
NNUNET_OURS, NNUNET = "nnU-Net's network in tfmuscle", "nnU-Net"
WIDTHS = (32, 64, 128, 256, 512, 512)
"""Filters of the network shared with nnU-Net: its rule for 2D, six levels."""
ENCODER_OF_NNUNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def main() -> None:
    options = _options()
    work = Path(options.work).resolve()
    if options.side:
        measure(options.side, work)
        return
    work.mkdir(parents=True, exist_ok=True)
    sides = [name for name in options.sides.split(",") if name] or list(OURS)
    sides += [SMP] if options.torch_python else []
    prepare(work, options.slices)
    if options.torch_python and not options.without_nnunet:
        _run(options.torch_python, "weights", work)
        sides += [NNUNET_OURS, NNUNET]
    measured: dict[str, list[dict]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            python = options.torch_python if side in (SMP, NNUNET) else sys.executable
            measured[side].append(_run(python, side, work))
            print(f"{side}: {measured[side][-1]}", file=sys.stderr, flush=True)
    (work / "measured.json").write_text(json.dumps(measured, indent=1))
    print(report(measured, options.slices, agreement(work)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="python of an environment with PyTorch; without it only tfmuscle runs")
    parser.add_argument("--work", required=True, help="folder for everything")
    parser.add_argument("--slices", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", default="", help="engines to measure, with commas between; all by default")
    parser.add_argument("--without-nnunet", action="store_true")
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
    if side == "weights":
        make_weights(work)
        print("{}")
        return
    starts: dict[str, Callable[[Path], Callable[[Path, Path], None]]] = {SMP: smp_side, NNUNET: nnunet_side}
    began = time.perf_counter()
    segment = starts[side](work) if side in starts else tfmuscle_side(side, work)
    segment(work / "few.nii.gz", work / "few_labels.nii.gz")
    start_up, began = time.perf_counter() - began, time.perf_counter()
    segment(work / "scan.nii.gz", work / f"labels_{side.split()[0]}.nii.gz")
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "start_up": start_up, "peak_gib": peak, "load": os.getloadavg()[0]}))


def prepare(work: Path, slices: int) -> None:
    """Makes the scan, a short one, and the run of tfmuscle; existing ones stay."""
    import nibabel as nib
    from scans import make_scans

    from tfmuscle import models
    from tfmuscle.config import DataSpec, Supervised, TrainConfig
    from tfmuscle.labels import LabelMap

    make_scans(work / "scans", 1, (slices, 512, 512))
    scan = nib.load(next((work / "scans" / "imagesTr").iterdir()))
    nib.save(scan, work / "scan.nii.gz")
    nib.save(scan.slicer[..., :WARM_UP_SLICES], work / "few.nii.gz")
    label_map = LabelMap({number: f"bone_{number}" for number in range(1, CLASSES)})
    common = {"kind": "slices", "size": (SIZE, SIZE)}
    specs = {
        "resnet34_unet": DataSpec(label_map, resize=True, normalisation="minmax", **common),
        "unet": DataSpec(label_map, normalisation="zscore_all", resampling="nnunet", blend="logits", **common),
    }
    options = {"strides": [[1, 1]] + [[2, 2]] * 5, "kernels": [[3, 3]] * 6, "filters": 32, "max_filters": 512}
    for name, spec in specs.items():
        run, chosen = work / name, {} if name != "unet" else options | {"deep_supervision": True}
        if not (run / "best.keras").exists():
            run.mkdir(exist_ok=True)
            spec.save(run / "spec.json")
            TrainConfig(model=name, recipe=Supervised(augmentation="none")).save(run / "train.json")
            models.build(name, spec.input_shape, CLASSES, **chosen).save(run / "best.keras")
            (run / "about.json").write_text("{}")


def tfmuscle_side(side: str, work: Path) -> Callable[[Path, Path], None]:
    from tfmuscle.inference import load_run, predict_volume, with_engine
    from tfmuscle.io import read_volume, write_volume

    if side == NNUNET_OURS:
        from nnunet_weights import copy_weights

        run = load_run(work / "unet")
        copy_weights(np.load(work / "weights.npz"), run.model)
    else:
        run = with_engine(load_run(work / "resnet34_unet"), side)

    def segment(scan: Path, out: Path) -> None:
        write_volume(out, predict_volume(run, read_volume(scan), mirror=False))

    return segment


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
        "conv_op": torch.nn.Conv2d if torch else "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * levels,
        "strides": [[1, 1]] + [[2, 2]] * (levels - 1),
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": torch.nn.InstanceNorm2d if torch else "torch.nn.modules.instancenorm.InstanceNorm2d",
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
    spacing = reader.read_images([str(work / "scan.nii.gz")])[1]["spacing"]
    manager = PlansManager(_plan([float(value) for value in spacing]))
    names = {"background": 0} | {f"bone_{number}": number for number in range(1, CLASSES)}
    dataset = {"channel_names": {"0": "T1"}, "labels": names, "file_ending": ".nii.gz", "numTraining": 1}
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False, perform_everything_on_device=False,
        device=torch.device("cpu"), verbose=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(
        network, manager, manager.get_configuration("2d"), [network.state_dict()], dataset, "nnUNetTrainer", None
    )

    def segment(scan: Path, out: Path) -> None:
        image, properties = reader.read_images([str(scan)])
        labels = predictor.predict_single_npy_array(image, properties)
        reader.write_seg(labels, str(out), properties)

    return segment


def _plan(spacing: list[float]) -> dict:
    """Returns a plan of nnU-Net for one 2D network at the scan's own spacing."""
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
        "data_identifier": "plans_2d", "preprocessor_name": "DefaultPreprocessor", "batch_size": BATCH,
        "patch_size": [SIZE, SIZE], "median_image_size_in_voxels": [512.0, 512.0], "spacing": spacing[1:],
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False], "batch_dice": True,
        "architecture": architecture,
    }  # fmt: skip
    return {
        "dataset_name": "Dataset001_Benchmark", "plans_name": "plans", "configurations": {"2d": configuration},
        "original_median_spacing_after_transp": spacing, "original_median_shape_after_transp": [64, 512, 512],
        "image_reader_writer": "NibabelIO", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "none", "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }  # fmt: skip


def agreement(work: Path) -> str:
    """Says how many voxels nnU-Net and tfmuscle label alike with the same weights."""
    import nibabel as nib

    files = [work / f"labels_{side.split()[0]}.nii.gz" for side in (NNUNET, NNUNET_OURS)]
    if not all(file.exists() for file in files):
        return ""
    one, other = (np.asanyarray(nib.load(file).dataobj) for file in files)
    return f"With the same weights nnU-Net and tfmuscle label {100 * (one == other).mean():.4f} % of the voxels alike."


def report(measured: dict[str, list[dict]], slices: int, note: str) -> str:
    """Returns the table; ratios are to the PyTorch side of the same network, above 1 where tfmuscle is faster."""
    lines = [
        f"One scan of 512 x 512 x {slices}; {platform.machine()}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}; medians of {len(next(iter(measured.values())))} rounds.",
        "",
        "| program | seconds a scan | from - to | peak GiB | start-up s | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    medians = {side: statistics.median(row["seconds"] for row in rows) for side, rows in measured.items()}
    for side, rows in measured.items():
        rival = NNUNET if side in (NNUNET, NNUNET_OURS) else SMP
        seconds = sorted(row["seconds"] for row in rows)
        peak, start = (statistics.median(row[key] for row in rows) for key in ("peak_gib", "start_up"))
        ratio = f"{medians[rival] / medians[side]:.2f}" if rival in medians else ""
        name = f"tfmuscle, {side}" if side in OURS else side
        spread = f"{seconds[0]:.1f} - {seconds[-1]:.1f}"
        lines.append(f"| {name} | {medians[side]:.1f} | {spread} | {peak:.2f} | {start:.0f} | {ratio} |")
    return "\n".join([*lines, "", note]).rstrip()


if __name__ == "__main__":
    main()
