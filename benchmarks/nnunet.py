"""Train nnU-Net v2 and tfmuscle on the same fold with the same plan, batch and number of steps; compare on that fold.

    python benchmarks/nnunet.py --data HIPPOCAMPUS --nnunet-python VENV/bin/python --work FOLDER --epochs 10 --steps 30

Done in this order, each part skipped when its result is there: tfmuscle plans and makes records; nnU-Net plans and
preprocesses the same scans; both plans are compared and the batch set alike; fold 0 of tfmuscle is given to nnU-Net as
its `splits_final.json`; nnU-Net trains (its own trainer, shortened), tfmuscle trains, one after the other; each
predicts the validation fold in its own way; `tfmuscle evaluate` measures both. `nnunet.md` holds what was seen.

The part that runs inside nnU-Net's environment is `nnunet_side`; it is called by this file with `--side`.
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

DATASET_ID, DATASET = 4, "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"
VALIDATION_BATCHES = 2
"""nnU-Net validates on this many batches an epoch instead of 50: it only chooses a checkpoint that is not used."""


def main() -> None:
    options = _options()
    work = Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.side:
        nnunet_side(options, work)
        return
    plan = ours_prepare(options, work)
    _nnunet(options, work, "prepare")
    theirs = json.loads((work / "nnunet_plan.json").read_text(encoding="utf-8"))
    print(json.dumps({"ours": plan, "nnU-Net": theirs}, indent=1), flush=True)
    seconds = {"load before": os.getloadavg()[0]}
    _nnunet(options, work, "train")
    seconds["nnU-Net"] = json.loads((work / "nnunet_seconds.json").read_text(encoding="utf-8"))
    seconds["tfmuscle"] = ours_train(options, work)
    seconds["load after"] = os.getloadavg()[0]
    report(options, work, seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the hippocampus dataset")
    parser.add_argument("--nnunet-python", help="python of an environment with nnunetv2")
    parser.add_argument("--work", required=True, help="folder for everything; a second run goes on there")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps an epoch")
    parser.add_argument("--batch", type=int, default=0, help="0: the plan's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=["prepare", "train"], help=argparse.SUPPRESS)
    return parser.parse_args()


def ours_prepare(options: argparse.Namespace, work: Path) -> dict:
    from tfmuscle.files import read_json
    from tfmuscle.records import read_index
    from tfmuscle.subjects import read_dataset

    if not (work / "records" / "index.json").exists():
        words = ["build-records", "-i", options.data, "-o", work / "records", "--preset", "nnunet_3d", "--workers", 2]
        _tfmuscle(*words, "--folds", 5, "--test", 0)
    spec = read_json(work / "records" / "spec.json")
    training = read_json(work / "records" / "plan.json")["configurations"][CONFIGURATION]["training"]
    folds = read_index(work / "records").folds
    split = {
        "train": sorted(subject for subject, fold in folds.items() if fold != 0),
        "val": sorted(subject for subject, fold in folds.items() if fold == 0),
    }
    (work / "splits_final.json").write_text(json.dumps([split]))
    _raw_dataset(read_dataset(options.data), work / "nnUNet_raw" / DATASET)
    options.batch = options.batch or training["batch_size"]
    return {
        "patch": [spec["depth"], *spec["size"]],
        "spacing": spec["spacing"],
        "batch": training["batch_size"],
        "strides": training["model_options"]["strides"],
        "kernels": training["model_options"]["kernels"],
        "normalisation": spec["normalisation"],
    }


def _raw_dataset(dataset, folder: Path) -> None:
    """Links the scans under the names nnU-Net wants."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for subject in dataset.subjects:
        for source, target in (
            (subject.images[0], folder / "imagesTr" / f"{subject.subject_id}_0000.nii.gz"),
            (subject.labels, folder / "labelsTr" / f"{subject.subject_id}.nii.gz"),
        ):
            if not target.exists():
                target.symlink_to(Path(source).resolve())
    about = {
        "channel_names": {"0": "MRI"},
        "labels": dataset.label_map.to_dict(),
        "numTraining": len(dataset.subjects),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))


def _tfmuscle(*words) -> None:
    subprocess.run([sys.executable, "-c", "from tfmuscle.cli import main; main()", *map(str, words)], check=True)


def _nnunet(options: argparse.Namespace, work: Path, side: str) -> None:
    environment = dict(os.environ) | {name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    environment |= {"nnUNet_results": str(work / "nnUNet_results"), "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    words = ["--data", options.data, "--work", str(work), "--epochs", str(options.epochs), "--side", side]
    words += ["--steps", str(options.steps), "--batch", str(options.batch), "--seed", str(options.seed)]
    subprocess.run([options.nnunet_python, __file__, *words], check=True, env=environment)


def nnunet_side(options: argparse.Namespace, work: Path) -> None:
    """Runs in nnU-Net's environment: plans and preprocesses, or trains and predicts the validation fold."""
    import torch
    from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    prepared = work / "nnUNet_preprocessed" / DATASET
    if options.side == "prepare":
        if not (prepared / "nnUNetPlans.json").exists():
            planning.extract_fingerprints([DATASET_ID], num_processes=2)
            planning.plan_experiments([DATASET_ID])
            planning.preprocess([DATASET_ID], configurations=[CONFIGURATION], num_processes=[2])
        shutil.copy(work / "splits_final.json", prepared / "splits_final.json")
        configuration = json.loads((prepared / "nnUNetPlans.json").read_text(encoding="utf-8"))["configurations"][
            CONFIGURATION
        ]
        network = configuration["architecture"]["arch_kwargs"]
        found = {key: configuration[key] for key in ("patch_size", "spacing", "batch_size", "normalization_schemes")}
        found |= {"strides": network["strides"], "kernels": network["kernel_sizes"]}
        (work / "nnunet_plan.json").write_text(json.dumps(found))
        return

    class Shortened(nnUNetTrainer):
        def __init__(self, plans, configuration, fold, dataset_json, device):  # nnU-Net wants these very names
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs, self.num_iterations_per_epoch = options.epochs, options.steps
            self.num_val_iterations_per_epoch = VALIDATION_BATCHES
            self.step_seconds = []

        def train_step(self, batch):
            started = time.perf_counter()
            result = super().train_step(batch)
            self.step_seconds.append(time.perf_counter() - started)
            return result

    torch.manual_seed(options.seed)
    torch.set_num_threads(os.cpu_count())
    plans = json.loads((prepared / "nnUNetPlans.json").read_text(encoding="utf-8")) | {"continue_training": False}
    plans["configurations"][CONFIGURATION]["batch_size"] = options.batch
    if (work / "nnunet_seconds.json").exists():
        return
    about = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))
    trainer = Shortened(plans, CONFIGURATION, 0, about, device=torch.device("cpu"))
    started = time.perf_counter()
    trainer.run_training()
    trained = time.perf_counter() - started
    started = time.perf_counter()
    trainer.perform_actual_validation()
    shutil.copytree(Path(trainer.output_folder) / "validation", work / "nnunet_predictions", dirs_exist_ok=True)
    found = {"seconds a step": statistics.median(trainer.step_seconds), "steps": len(trainer.step_seconds)}
    found |= {"training": trained, "prediction": time.perf_counter() - started}
    found |= {"parameters": sum(weight.numel() for weight in trainer.network.parameters())}
    (work / "nnunet_seconds.json").write_text(json.dumps(found))


def ours_train(options: argparse.Namespace, work: Path) -> dict:
    """Trains by the library; the time of every step is seen by the progress it tells."""
    from tfmuscle.files import read_json
    from tfmuscle.workflows.learning import fit, plan_training
    from tfmuscle.workflows.planning import training_plan

    path = work / "tfmuscle_seconds.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    settings = {"epochs": options.epochs, "steps": options.steps, "batch_size": options.batch, "seed": options.seed}
    plan = training_plan(work / "records", "nnunet_3d")
    config = plan_training(settings, recipe={}, preset="nnunet_3d", plan=plan)
    moments: list[float] = []

    def heard(done: int, total: int, note: str) -> None:
        moments.append(time.perf_counter())

    started = time.perf_counter()
    fit(work / "records", work / "run", config, resume=True, progress=heard)
    trained = time.perf_counter() - started
    started = time.perf_counter()
    _tfmuscle("predict", "-m", work / "run", "-i", options.data, "-o", work / "predictions", "--split", "validation")
    gaps = [after - before for before, after in zip(moments, moments[1:], strict=False)]
    found = {"seconds a step": statistics.median(gaps), "steps": len(moments), "training": trained}
    found |= {"prediction": time.perf_counter() - started}
    found |= {"parameters": read_json(work / "run" / "about.json")["parameters"]}
    path.write_text(json.dumps(found))
    return found


def report(options: argparse.Namespace, work: Path, seconds: dict) -> None:
    from tfmuscle.files import read_json

    rows = {}
    for side, folder in (("nnU-Net", "nnunet_predictions"), ("tfmuscle", "predictions")):
        out = work / f"report_{side}"
        _tfmuscle("evaluate", "-i", work / folder, "-r", options.data, "-o", out)
        rows[side] = read_json(out / "summary.json")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"\n{machine}; load {seconds['load before']:.1f} before, {seconds['load after']:.1f} after")
    print(f"{options.epochs} epochs of {options.steps} steps, batch {options.batch}, seed {options.seed}\n")
    print(json.dumps(seconds, indent=1))
    for side, summary in rows.items():
        print(side, json.dumps(summary, indent=1)[:3000])


if __name__ == "__main__":
    main()
