"""Building records against nnU-Net's own preprocessing: seconds and memory per scan, in one run.

    python benchmarks/records.py --nnunet-python NNUNET/bin/python --hippocampus DATA --work FOLDER

`NNUNET` is another environment with `nnunetv2` and PyTorch for the CPU. Without `--hippocampus` only the synthetic
scans are measured. The report is Markdown on standard output; everything measured is in `FOLDER/measured.json`.

What is compared. One scan in, one file of training data out: tfmuscle's `build_shard` (read, check, crop to what is not
zero, resample, normalise, cut into slices, write and checksum the TFRecord) and nnU-Net's `run_case_save` (read, crop,
normalise, resample, sample foreground places, write blosc2). Both get the same files, the same target spacing, linear
interpolation of images, nearest neighbour for labels (nnU-Net's own defaults, cubic and linear, are a row of their own)
and z-score normalisation. The grids and intensities that come out are compared.

How. Every worker is a process of its own, started and warmed by the imports before any clock runs, held to one core,
and told scan by scan what to do. Scans go A B B A, so that a busy machine is busy for both. Peak memory is the kernel's
`VmHWM` of the process, start-up included; "above start-up" subtracts what the process held when the imports were done.
Figures of several workers add the peaks of the processes.

The synthetic scans are `--scans` of `--shape`, 3 x 0.8 x 0.8 mm, resampled to 2.5 x 1 x 1 mm; see `scans.py`.

Two Python environments run this one file, so whatever only one of them has is imported by the function that needs it.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scans import SPACING, make_scans

TARGET = (2.5, 1.0, 1.0)
"""Spacing to resample the synthetic scans to, in mm."""
BATCH = 3
"""Scans one side does before the other takes over."""
DEFAULT_ORDERS = 1
"""Scans of the row with nnU-Net's default orders."""


def tfmuscle_job(folder: Path, out: Path, settings: dict):
    """Returns the function that makes one scan's shard, and the one that reads it back as image and labels."""
    import cv2

    from tfmuscle.config import DataSpec
    from tfmuscle.records import read_shard
    from tfmuscle.subjects import read_dataset
    from tfmuscle.workflows.building import build_shard

    cv2.setNumThreads(1)
    dataset = read_dataset(folder)
    subjects = {subject.subject_id: subject for subject in dataset.subjects}
    common = {"label_map": dataset.label_map.to_dict(), "channels": dataset.channels, "crop_nonzero": True}
    spec = DataSpec.from_dict(common | settings["spec"])
    spec.save(out / "spec.json")

    def make(name: str) -> None:
        entry = build_shard((subjects[name], out / f"{name}.tfrecord", spec))
        assert entry["status"] == "ok", entry  # noqa: S101

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        samples = list(read_shard(out / f"{name}.tfrecord", spec))
        image = np.concatenate([sample["image"].reshape(-1, *spec.size) for sample in samples])
        labels = np.concatenate([sample["labels"].reshape(-1, *spec.size) for sample in samples])
        known = [np.flatnonzero((labels >= 0).any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        box = tuple(slice(axis[0], axis[-1] + 1) for axis in known)  # what was padded around a small scan is unknown
        return image[box], labels[box]

    return make, read, [subject.subject_id for subject in dataset.subjects]


def nnunet_job(folder: Path, out: Path, settings: dict):
    """Returns the same for nnU-Net's DefaultPreprocessor."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, str(out))
    import blosc2
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    if "0" in about["labels"]:  # the Decathlon writes id -> name
        about["labels"] = {name: int(key) for key, name in about["labels"].items()}
    plans = PlansManager(_plans(settings))
    configuration = plans.get_configuration("3d_fullres")
    preprocessor = DefaultPreprocessor(verbose=False)
    plans.image_reader_writer_class()  # found by importing every reader of the package: start-up
    _ = configuration.resampling_fn_data, configuration.resampling_fn_seg, plans.get_label_manager(about)
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").glob("*.nii.gz"))

    def make(name: str) -> None:
        image = folder / "imagesTr" / f"{name}_0000.nii.gz"
        if not image.exists():
            image = folder / "imagesTr" / f"{name}.nii.gz"
        label = str(folder / "labelsTr" / f"{name}.nii.gz")
        preprocessor.run_case_save(str(out / name), [str(image)], label, plans, configuration, about)

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        return tuple(blosc2.open(str(out / f"{name}{end}.b2nd"))[0] for end in ("", "_seg"))  # type: ignore[return-value]

    return make, read, names


def _plans(settings: dict) -> dict:
    separate = {"force_separate_z": False, "order_z": 0}
    configuration: dict = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "architecture": {},
        "batch_size": 2,
        "patch_size": settings["patch"],
        "spacing": settings["spec"]["spacing"],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": settings["order"]} | separate,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": settings["order_labels"]} | separate,
    }
    if settings["order"] == 3:  # the plan nnU-Net itself makes
        for key in ("resampling_fn_data_kwargs", "resampling_fn_seg_kwargs"):
            configuration[key]["force_separate_z"] = None
    return {
        "dataset_name": "benchmark",
        "plans_name": "benchmark",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


def work(job: dict) -> None:
    """What a worker process does: gets ready, then answers every name on standard input with what it cost."""
    os.sched_setaffinity(0, {job["core"]})
    side = {"tfmuscle": tfmuscle_job, "nnU-Net": nnunet_job}[job["side"]]
    make, read, names = side(Path(job["folder"]), Path(job["out"]), job["settings"])
    answer({"names": names, "start_up": _memory("VmRSS")})
    for line in sys.stdin:
        order = json.loads(line)
        if "compare" in order:
            image, labels = read(order["compare"])
            np.savez(order["to"], image=image, labels=labels)
            answer({})
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        make(order["make"])
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        answer(seconds | {"peak": _memory("VmHWM")})


def answer(content: dict) -> None:
    """Writes one line of JSON that the parent tells from what libraries print."""
    print("@" + json.dumps(content), flush=True)


def _memory(key: str) -> float:
    """Returns `VmRSS` or `VmHWM` of this process in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}; this benchmark needs Linux")


class Worker:
    """A worker process; a class because it holds the process and its pipes."""

    def __init__(self, python: str, job: dict) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_MAX_THREADS"), "1")
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
        self.process: Any = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--job", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr if os.environ.get("VERBOSE") else subprocess.DEVNULL,
            env=os.environ | threads | quiet,
            text=True,
        )
        self.peak = 0.0
        ready = self.receive()
        self.names, self.start_up = ready["names"], ready["start_up"]

    def send(self, order: dict) -> None:
        """Gives an order without waiting for the answer."""
        print(json.dumps(order), file=self.process.stdin, flush=True)

    def receive(self) -> dict:
        """Waits for the answer."""
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError("a worker stopped; run again with VERBOSE=1 to see why")

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def measure(title: str, folder: Path, work_folder: Path, options: dict) -> dict:
    """Runs both sides over the scans of `folder` and returns what every scan cost, in order, and the peaks.

    Args:
        title: of the comparison; names the output folder.
        folder: dataset.
        work_folder: where outputs go, for as long as it takes.
        options: `pythons` side -> python, `workers`, `settings`, `scans`, `batch`.
    """
    num = options["workers"]
    cores = sorted(os.sched_getaffinity(0))
    sides: dict[str, list[Worker]] = {}
    for side, python in options["pythons"].items():
        out = work_folder / "out" / side
        shutil.rmtree(out, ignore_errors=True)  # finished shards would be kept, not made
        jobs = [{"side": side, "folder": str(folder), "out": str(out), "settings": options["settings"]}] * num
        sides[side] = [Worker(python, job | {"core": cores[n % len(cores)]}) for n, job in enumerate(jobs)]
    names = next(iter(sides.values()))[0].names[: options["scans"]]
    batches = [names[first : first + options["batch"] * num] for first in range(0, len(names), options["batch"] * num)]
    found: dict = {side: {"scans": [], "wall": 0.0, "after": []} for side in sides}
    for number, batch in enumerate(batches):
        for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
            run_batch(sides[side], batch, found[side])
    result = {"title": title, "workers": num, "scans": len(names), "sides": found}
    for side, workers in sides.items():
        found[side]["start_up"] = sum(worker.start_up for worker in workers)
    if len(sides) == 2:
        result["agreement"] = compare(sides, names[-1], work_folder)
    for worker in sum(sides.values(), []):
        worker.close()
    shutil.rmtree(work_folder / "out")
    return result


def run_batch(workers: list[Worker], names: list[str], found: dict) -> None:
    """Gives the scans to the workers, each a new one when it is done with the last, and adds up what it took."""
    begin = time.perf_counter()
    shares = [names[number :: len(workers)] for number in range(len(workers))]
    for row in range(max(map(len, shares))):
        busy = [(worker, share[row]) for worker, share in zip(workers, shares, strict=True) if row < len(share)]
        for worker, name in busy:
            worker.send({"make": name})
        for worker, _ in busy:
            one = worker.receive()
            found["scans"].append(one)
            worker.peak = one["peak"]
    found["wall"] += time.perf_counter() - begin
    peak = sum(worker.peak for worker in workers)
    found["after"].append({"scans": len(found["scans"]), "wall": found["wall"], "peak": peak})


def compare(sides: dict[str, list[Worker]], name: str, work_folder: Path) -> dict:
    """Compares what both made of one scan: shape, correlation of intensities, share of equal labels."""
    made = {}
    for side, workers in sides.items():
        path = work_folder / f"{side}.npz"
        workers[0].send({"compare": name, "to": str(path)})
        workers[0].receive()
        with np.load(path) as content:
            made[side] = content["image"], content["labels"]
        path.unlink()
    (image, labels), (other, other_labels) = made["tfmuscle"], made["nnU-Net"]
    found: dict = {"shape": list(image.shape), "nnU-Net shape": list(other.shape)}
    if image.shape == other.shape:
        found["correlation"] = float(np.corrcoef(image.ravel(), other.ravel())[0, 1])
        found["equal labels"] = float((labels == np.maximum(other_labels, 0)).mean())
    return found


def row(result: dict) -> str:
    """Returns a line of the table."""
    cells = [result["title"], str(result["workers"]), str(result["scans"])]
    per_scan, cpu, peak, above = {}, {}, {}, {}
    for side, found in result["sides"].items():
        per_scan[side] = statistics.median(one["wall"] for one in found["scans"]) / result["workers"]
        cpu[side] = statistics.median(one["cpu"] for one in found["scans"])
        peak[side] = found["after"][-1]["peak"]
        above[side] = peak[side] - found["start_up"]
    for values, form in ((per_scan, "{:.3g}"), (cpu, "{:.3g}"), (peak, "{:.0f}"), (above, "{:.0f}")):
        ours, theirs = values.get("tfmuscle"), values["nnU-Net"]
        if ours is None:
            cells.append(f"– / {form.format(theirs)}")
            continue
        ratio = theirs / ours if values in (per_scan, cpu) else ours / theirs
        cells.append(f"{form.format(ours)} / {form.format(theirs)} (**{ratio:.2f}**)")
    return "| " + " | ".join(cells) + " |"


def linear(result: dict) -> list[str]:
    """Returns how time and peak grew with the number of scans, a line a side."""
    lines = []
    for side, found in result["sides"].items():
        seconds = np.cumsum([one["wall"] for one in found["scans"]])
        count = np.arange(1, len(seconds) + 1)
        slope, start = np.polyfit(count, seconds, 1)
        off = np.abs(seconds - (start + slope * count)).max() / seconds[-1]
        marks = sorted({n for n in (6, 12, 24, len(count)) if n <= len(count)})
        cost = ", ".join(f"{n}: {seconds[n - 1]:.1f} s, {found['scans'][n - 1]['peak']:.0f} MiB" for n in marks)
        lines.append(
            f"* {side}: {cost}; fit {start:.2f} + {slope:.3f} n seconds, farthest point {100 * off:.1f} % off the line"
        )
    return lines


HEAD = """\
| scans | workers | number | seconds a scan | CPU seconds a scan | peak memory MiB | above start-up MiB |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nnunet-python", help="Python of an environment with nnunetv2")
    parser.add_argument("--hippocampus", "--data", type=Path, help="folder of the Decathlon hippocampus")
    parser.add_argument("--work", type=Path, default=Path("benchmark-records"), help="scratch folder; scans are kept")
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 512, 512), help="slices, rows, columns")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        work(json.loads(arguments.job))
        return
    if not arguments.nnunet_python:
        parser.error("--nnunet-python is missing: give the Python of an environment with nnunetv2")
    scans = arguments.work / "scans_{}x{}x{}".format(*arguments.shape)
    make_scans(scans, arguments.scans, tuple(arguments.shape))
    pythons = {"tfmuscle": sys.executable, "nnU-Net": arguments.nnunet_python}
    results = list(comparisons(arguments, scans, pythons))
    (arguments.work / "measured.json").write_text(json.dumps(results, indent=1))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, Python"
        f" {platform.python_version()}; tfmuscle / nnU-Net (ratio)\n\n{HEAD}"
    )
    print("\n".join(row(result) for result in results))
    print("\nGrowth with the number of scans (one worker):\n\n" + "\n".join(linear(results[0])))
    for result in results:
        if "agreement" in result:
            print(f"\n{result['title']}, {result['workers']} worker(s): {json.dumps(result['agreement'])}")


def comparisons(arguments: argparse.Namespace, scans: Path, pythons: dict[str, str]):
    """Yields the results one by one: synthetic, two workers, hippocampus, nnU-Net's default orders."""
    title = "{} x {} x {}".format(*arguments.shape)
    size = [int(np.floor(n * a / b + 0.5)) for n, a, b in zip(arguments.shape, SPACING, TARGET, strict=True)]
    spec: dict = {"kind": "slices", "size": size[1:], "spacing": TARGET}
    settings: dict = {"spec": spec, "patch": [size[0] // 2, size[1] // 2, size[2] // 2], "order": 1, "order_labels": 0}
    options = {"pythons": pythons, "workers": 1, "settings": settings, "scans": arguments.scans, "batch": BATCH}
    yield measure(title, scans, arguments.work, options)
    yield measure(title, scans, arguments.work, options | {"workers": 2, "scans": max(2, arguments.scans // 3)})
    if arguments.hippocampus:
        spec = {"kind": "volumes", "depth": 40, "size": [56, 40], "spacing": (1.0, 1.0, 1.0)}
        spec["orientation"] = "SAR"  # as nnU-Net keeps them, so that the results can be compared
        small = {"spec": spec, "patch": [40, 56, 40], "order": 1, "order_labels": 0}
        yield measure(
            "hippocampus",
            arguments.hippocampus,
            arguments.work,
            options | {"settings": small, "scans": 200, "batch": 20},
        )
    slower = options | {"settings": settings | {"order": 3, "order_labels": 1}, "scans": DEFAULT_ORDERS}
    yield measure(
        f"{title}, nnU-Net's default orders",
        scans,
        arguments.work,
        slower | {"pythons": {"nnU-Net": pythons["nnU-Net"]}},
    )


if __name__ == "__main__":
    main()
