"""What runs a network fastest: latency, throughput, memory and file size of every engine and precision, in one run.

    python benchmarks/engines.py --work FOLDER --rounds 3 --threads 2

Two networks with random weights: a ResNet34 U-Net of five classes on slices of 256 x 256, and a U-Net in nnU-Net's form
(anisotropic kernels and poolings, instance normalisation) on windows of 32 x 64 x 64. Everything is a ratio to
`model.predict` of Keras, above 1 where the engine is faster. The report is Markdown on standard output.

How. The files are made as `export` makes them. Then every engine is a process of its own that holds nothing else, so
that its memory is its own; all of them wait, and are asked one after the other, round by round, so that a busy machine
is busy for all. A round is the shortest of a few calls; a ratio is the median over rounds. Beside the time on the clock
stands that of the processor, which other work on the machine does not lengthen.

float16 and int8 are the files that `export --precision` makes for TensorRT, here run by ONNX Runtime and OpenVINO;
bfloat16 is OpenVINO's own, because ONNX Runtime has no such convolution on processors. Whether they say the same as
Keras is measured on a trained network: `--trained RUN --scans FOLDER` prints a second table.
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
from pathlib import Path

import numpy as np

FLAT, DEEP = "resnet34_unet, 256 x 256", "unet 3D, 32 x 64 x 64"
BATCH = {FLAT: 8, DEEP: 2}
CALLS = 1
"""In a round."""
ENGINES = {
    "Keras, predict": ("keras", "network.keras"),
    "Keras, as tfmuscle calls it": ("compiled", "network.keras"),
    "SavedModel": ("saved_model", "saved"),
    "ONNX Runtime": ("onnx", "onnx/network.onnx"),
    "OpenVINO": ("openvino", "openvino/network.xml"),
    "LiteRT": ("litert", "litert/network.tflite"),
    "ONNX Runtime, float16": ("onnx", "float16.onnx"),
    "OpenVINO, bfloat16": ("openvino bf16", "openvino/network.xml"),
    "ONNX Runtime, int8": ("onnx", "int8.onnx"),
    "OpenVINO, int8": ("openvino", "int8.onnx"),
}
FIRST = "Keras, predict"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="a word of the one network that is wanted")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trained", type=Path, help="a trained run, whose labels are compared")
    parser.add_argument("--scans", type=Path, help="the scans for that")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work_for_others(*options.worker, options.threads)
    elif options.make:
        make(options.make, options.work)
    elif options.trained:
        print(agreement(options.trained, options.scans, options.work))
    else:
        print("\n".join(table(network, options) for network in BATCH if options.only in network))


def make(network: str, folder: Path) -> None:
    """Writes a network as every format and precision."""
    import keras
    import openvino

    from tfmuscle import models
    from tfmuscle.config import DataSpec, TrainConfig
    from tfmuscle.export.formats import WRITERS, Wanted
    from tfmuscle.export.precision import in_precision, measured
    from tfmuscle.export.segment import Segmenter
    from tfmuscle.inference import Run
    from tfmuscle.labels import LabelMap

    keras.utils.set_random_seed(0)
    labels = LabelMap({number: f"bone_{number}" for number in range(1, 5)})
    if network == FLAT:
        spec = DataSpec(labels, kind="slices", size=(256, 256))
        model = models.build("resnet34_unet", spec.input_shape, spec.num_classes)
    else:
        spec = DataSpec(labels, kind="volumes", size=(64, 64), depth=32)
        strides, kernels = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]
        model = models.build("unet", spec.input_shape, spec.num_classes, filters=16, strides=strides, kernels=kernels)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "network.keras")
    samples = np.random.default_rng(0).normal(size=(BATCH[network], *spec.input_shape)).astype(np.float32)
    np.save(folder / "samples.npy", samples)
    graph = Segmenter([Run(model, spec, TrainConfig(), folder)], mirror=False)
    WRITERS["onnx"](graph, folder, Wanted())
    onnx = (folder / "onnx/network.onnx").read_bytes()
    (folder / "float16.onnx").write_bytes(in_precision(onnx, "float16"))
    (folder / "int8.onnx").write_bytes(in_precision(onnx, "int8", measured(onnx, samples[:2])))
    (folder / "openvino").mkdir(exist_ok=True)
    openvino.save_model(openvino.convert_model(folder / "onnx/network.onnx"), folder / "openvino/network.xml", False)
    if network == FLAT:
        WRITERS["litert"](graph, folder, Wanted())
    WRITERS["saved_model"](graph, folder / "saved", Wanted())


def start(kind: str, path: Path, threads: int):
    """Starts one engine and imports nothing else; 0 threads leaves their number to it."""
    if kind == "onnx":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"image": images})[0]
    if kind.startswith("openvino"):
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        settings["INFERENCE_PRECISION_HINT"] = "bf16" if kind.endswith("bf16") else "f32"
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        return lambda images: compiled(images)[0]
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    if kind == "litert":
        interpreter = tf.lite.Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
        into, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

        def one(image):
            interpreter.set_tensor(into, image[np.newaxis])
            interpreter.invoke()
            return interpreter.get_tensor(out)[0]

        return lambda images: np.stack([one(image) for image in images])
    if kind == "saved_model":
        loaded = tf.saved_model.load(str(path))
        return lambda images: loaded.signatures["serving_default"](tf.constant(images))["probabilities"].numpy()
    from tfmuscle import models

    model = models.load(path)
    if kind == "keras":
        return lambda images: model.predict(images, batch_size=len(images), verbose=0)
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)]
    call = tf.function(lambda images: model(images, training=False), input_signature=signature, autograph=False)
    return lambda images: call(tf.constant(images)).numpy()


def work_for_others(kind: str, path: str, samples: str, threads: int) -> None:
    """Starts an engine, and for every number on standard input says how long so many samples take."""
    began, images = time.perf_counter(), np.load(samples)
    infer = start(kind, Path(path), threads)
    print(json.dumps({"start": time.perf_counter() - began, "sum": float(infer(images[:1]).sum())}), flush=True)
    for line in sys.stdin:
        some, times = images[: int(line)], []
        for _ in range(CALLS):
            clock, processor = time.perf_counter(), time.process_time()
            infer(some)
            times.append((time.perf_counter() - clock, time.process_time() - processor))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        clock, processor = (min(one) for one in zip(*times, strict=True))
        print(json.dumps({"clock": clock, "processor": processor, "gib": peak}), flush=True)


def table(network: str, options: argparse.Namespace) -> str:
    """Measures every engine of one network, and returns the table."""
    folder = options.work / network.split()[0].strip(",")
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    if not (folder / "saved" / "saved_model.pb").exists():
        subprocess.run([sys.executable, __file__, "--make", network, "--work", folder], check=True, env=quiet)
    workers, measured = {}, {}
    for name, (kind, file) in ENGINES.items():
        if (folder / file).exists():
            words = [sys.executable, __file__, "--work", folder, "--threads", str(options.threads)]
            words += ["--worker", kind, folder / file, folder / "samples.npy"]
            workers[name] = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=quiet,
                start_new_session=True,
            )
            measured[name] = {"start": json.loads(workers[name].stdout.readline())["start"], 1: [], BATCH[network]: []}
            print(f"{network}: {name} started", file=sys.stderr, flush=True)
    load = [os.getloadavg()[0]]
    for number in range(options.rounds):
        for name in list(workers) if number % 2 == 0 else reversed(workers):
            for count in (1, BATCH[network]):
                workers[name].stdin.write(f"{count}\n")
                workers[name].stdin.flush()
                measured[name][count].append(json.loads(workers[name].stdout.readline()))
        load.append(os.getloadavg()[0])
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    (options.work / f"{folder.name}.json").write_text(json.dumps(measured, indent=1))
    return report(network, measured, folder, f"{options.threads} thread(s), {options.rounds} rounds, load {load}")


def report(network: str, measured: dict, folder: Path, how: str) -> str:
    many = BATCH[network]
    heads = ["engine", "latency, ms", "as fast, clock", "processor", f"{many} samples: clock", "processor", "GiB", "MB"]
    lines = [f"**{network}** ({platform.machine()}, Python {platform.python_version()}, {how})", ""]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, found in measured.items():
        file = folder / ENGINES[name][1]
        inside = file.rglob("*") if file.is_dir() else [file, file.with_suffix(".bin")]
        size = sum(part.stat().st_size for part in inside if part.is_file()) / 1e6
        latency = statistics.median(one["clock"] for one in found[1]) * 1e3
        ratios = [ratio(measured, name, count, what) for count in (1, many) for what in ("clock", "processor")]
        cells = [f"{latency:.0f}", *(f"{one:.2f}" for one in ratios), f"{found[many][-1]['gib']:.2f}", f"{size:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def ratio(measured: dict, name: str, count: int, what: str) -> float:
    """Returns how many times as fast as `model.predict`, the median over rounds."""
    rounds = zip(measured[FIRST][count], measured[name][count], strict=True)
    return statistics.median(first[what] / other[what] for first, other in rounds)


def agreement(run: Path, scans: Path, work: Path) -> str:
    """Compares labels and probabilities of whole scans with those of Keras, for every engine and precision."""
    from tfmuscle.export.formats import WRITERS, Wanted
    from tfmuscle.export.parity import MEASURED, tolerance_of, windows_of
    from tfmuscle.export.precision import in_precision, measured
    from tfmuscle.export.segment import Segmenter
    from tfmuscle.inference import Engine, Run, load_run, predict_probabilities
    from tfmuscle.subjects import read_scans

    opened = load_run(run)
    images = [subject.read_image() for subject in read_scans(scans, opened.spec.channels)]
    graph = Segmenter([opened], mirror=False)
    WRITERS["onnx"](graph, work, Wanted())
    WRITERS["openvino"](graph, work, Wanted())
    WRITERS["saved_model"](graph, work / "saved", Wanted())
    onnx = (work / "onnx/network.onnx").read_bytes()
    largest = measured(onnx, windows_of(opened, images[:2], MEASURED))
    for precision in ("float16", "int8"):
        (work / f"{precision}.onnx").write_bytes(in_precision(onnx, precision, largest))
    expected = [predict_probabilities(opened, image).array for image in images]
    lines = ["| engine | largest difference of a probability | allowed | equal labels | widest margin where not |"]
    lines += ["|---|---|---|---|---|"]
    for name, (kind, file) in ENGINES.items():
        if kind in ("keras", "compiled", "litert"):
            continue
        infer = start(kind, work / file, 0)
        engine = Engine(name, infer, infer, run, must_be=True)
        engine.proven = True
        other = Run(None, opened.spec, opened.config, run, engine=engine)
        found = [predict_probabilities(other, image).array for image in images]
        precision = next((one for one in ("bfloat16", "float16", "int8") if name.endswith(one)), "float32")
        allowed = tolerance_of("saved_model" if kind == "saved_model" else "onnx", precision)
        lines.append(f"| {name} | {compared(expected, found, allowed)} |")
    return "\n".join([*lines, "", f"{len(images)} scans, {sum(one[..., 0].size for one in expected):,} voxels"])


def compared(expected: list[np.ndarray], found: list[np.ndarray], allowed: float) -> str:
    largest, equal, total, widest = 0.0, 0, 0, 0.0
    for one, other in zip(expected, found, strict=True):
        largest = max(largest, float(np.abs(one - other).max()))
        same = one.argmax(-1) == other.argmax(-1)
        ranked = np.partition(one, -2, axis=-1)
        margin = ranked[..., -1] - ranked[..., -2]
        equal, total = equal + int(same.sum()), total + same.size
        widest = max(widest, float(margin[~same].max()) if (~same).any() else 0.0)
    return f"{largest:.1e} | {allowed:g} | {100 * equal / total:.4f} % | {widest:.1e}"


if __name__ == "__main__":
    main()
