"""Networks that carry masks: as carriers, as run folders, on the command line."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from propagation_samples import SPEC, scan_of, tiny

from tfmuscle import models
from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import DataSpec, Propagation, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json
from tfmuscle.inference import load_run, predict_volume
from tfmuscle.inference.propagation import (
    carrier_of,
    carry_refreshed,
    framed,
    load_propagation,
    network_carrier,
    prepare,
)
from tfmuscle.labels import IGNORE
from tfmuscle.presets import get_preset
from tfmuscle.propagation.carriers import Carrier, carry
from tfmuscle.records import read_index, read_scan
from tfmuscle.subjects import read_dataset
from tfmuscle.training import live_page, propagation, propagation_state, supervised
from tfmuscle.training.propagation import carried_dice, check_propagation, fit_propagation
from tfmuscle.training.propagation_ways import way_of
from tfmuscle.training.schedule import learning_rate
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows.building import build_records
from tfmuscle.workflows.data import phantom, plan_spec
from tfmuscle.workflows.learning import fit, plan_propagation, plan_training
from tfmuscle.workflows.slices import SliceLabels, fit_slices
from tfmuscle.workflows.variants import candidates_of_presets, candidates_of_study


class TestCarriers:
    def test_framing(self):
        array = np.arange(24).reshape(1, 4, 6)
        assert np.array_equal(framed(framed(array, (8, 9), 7), (4, 6), 0), array)
        small = framed(array, (2, 2), 0)
        assert small.tolist() == [[[8, 9], [14, 15]]]
        assert framed(small, (4, 6), 0).sum() == small.sum()

    def test_a_network_as_a_carrier(self):
        keras.utils.set_random_seed(3)
        model = tiny(SPEC)
        carrier = carrier_of(model, SPEC, Propagation())
        assert (carrier.window, carrier.starts) == (3, 3)
        rng = np.random.default_rng(0)
        images, masks = rng.normal(size=(3, 4, 4)).astype(np.float32), rng.random((3, 4, 4, 2)).astype(np.float32)
        step = carrier.begin(images, masks)
        found = step(images, masks)
        for number in range(2):
            parts = {"image": tf.constant(images[None, ..., None]), "mask": tf.constant(masks[None, ..., number, None])}
            np.testing.assert_allclose(found[..., number], model(parts)[0, ..., 1], atol=1e-6)
        larger = np.pad(images, ((0, 0), (2, 1), (0, 3)), constant_values=images.min())
        wide = np.pad(masks, ((0, 0), (2, 1), (0, 3), (0, 0)))
        again = carrier.begin(larger, wide)(larger, wide)
        assert again.shape == wide.shape
        # 7 x 7 to 4 x 4: the middle begins at 1, so nothing beyond rows and columns 1 to 4 is ever found
        assert not again[:, [0, 5, 6]].any() and not again[:, :, [0, 5, 6]].any()

    def test_large_windows_go_one_after_the_other(self, monkeypatch):
        keras.utils.set_random_seed(3)
        model = tiny(SPEC)
        rng = np.random.default_rng(0)
        images, masks = rng.normal(size=(3, 4, 4)).astype(np.float32), rng.random((3, 4, 4, 5)).astype(np.float32)
        together = carrier_of(model, SPEC, Propagation()).begin(images, masks)(images, masks)
        monkeypatch.setattr("tfmuscle.inference.propagation.WINDOW_BUDGET_VOXELS", 100)  # two windows of 48
        apart = carrier_of(model, SPEC, Propagation()).begin(images, masks)(images, masks)
        np.testing.assert_allclose(apart, together, atol=1e-6)

    def test_only_the_expert_is_fed(self):
        carrier = carrier_of(tiny(SPEC), SPEC, Propagation(feedback="expert"))
        images, start = np.ones((3, 4, 4), np.float32), np.ones((3, 4, 4, 1), np.float32)
        step = carrier.begin(images, start)
        np.testing.assert_array_equal(step(images, np.zeros_like(start)), step(images, start))

    def test_putting_the_truth_in(self):
        identity = Carrier(2, 2, lambda images, masks: lambda images, masks: masks)
        images, truth = np.zeros((9, 1, 1)), np.arange(9.0).reshape(9, 1, 1, 1)
        plain = np.concatenate(list(carry_refreshed(identity, images, truth)))[:, 0, 0, 0]
        assert plain.tolist() == np.concatenate([m for m, _ in carry(identity, images, truth[:2])])[:, 0, 0, 0].tolist()
        found = np.concatenate(list(carry_refreshed(identity, images, truth, refresh_every=4)))[:, 0, 0, 0]
        assert len(found) == 9
        assert [found[0], found[4]] == [0, 4]
        # the last slice alone is no window: it is carried from the one before, which is position 1 of it
        assert found[8] == 8
        with pytest.raises(ValueError, match="refresh_every is 1: every window would be given the truth"):
            next(carry_refreshed(identity, images, truth, refresh_every=1))

    def test_dice_of_what_was_carried(self):
        labels = np.zeros((8, 4, 4))
        labels[:, :2, :2] = 1
        labels[2:5, :2, 2] = 1  # 6 pixels on slices 2 to 4, 4 on the others
        still = Carrier(3, 3, lambda images, masks: lambda images, masks: masks)
        # to both ends: found 6 on each of 5 slices; true 4 on each; in common 4
        assert carried_dice(still, scan_of(labels), [1, 2]) == [pytest.approx(2 * 20 / (30 + 20))]
        labels[[1, 6]] = IGNORE
        assert carried_dice(still, scan_of(labels), [1]) == [pytest.approx(2 * 12 / (18 + 12))]
        labels[[2, 4]] = IGNORE  # none of the slices left stands beside two others
        assert carried_dice(still, scan_of(labels), [1]) == [pytest.approx(2 * 12 / (18 + 12))]
        assert carried_dice(still, scan_of(np.full((8, 4, 4), IGNORE)), [1]) == []


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps")
    dataset = phantom(folder / "scans", subjects=4, seed=1, kind="ultrasound", spacing=(9.6, 9.6, 12.0))
    settings = {"size": (16, 16), "folds": 3}
    build_records(dataset, folder / "records", plan_spec(read_dataset(dataset), settings, preset="ifss_net"))
    return folder / "records"


CONFIG = TrainConfig(
    model="ifss_net",
    batch_size=1,
    epochs=2,
    learning_rate=1e-2,
    schedule="last_two",
    recipe=Supervised(augmentation="none"),
)
SETTINGS = Propagation(mode="per_window", reverse=0.5, mirror=0.5)


@pytest.fixture(scope="module")
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propagation, "_built", tiny)
        patch.setattr(propagation, "check_propagation", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def finished(records, small_network, tmp_path_factory):
    return fit_propagation(records, tmp_path_factory.mktemp("runs") / "whole", CONFIG, SETTINGS)


class TestRuns:
    def test_an_interrupted_run_ends_as_one_that_was_not(self, records, finished, monkeypatch, tmp_path):
        class Killed(Exception):
            pass

        calls = []

        def kill(done, total, note):
            calls.append(done)
            if "epoch 2" in note and done % 1000 > 500:
                raise Killed

        monkeypatch.setattr(propagation_state, "SAVE_SECONDS", 0.0)
        monkeypatch.setattr(live_page, "SECONDS", 0.0)
        with pytest.raises(Killed):
            fit_propagation(records, tmp_path / "run", CONFIG, SETTINGS, progress=kill)
        assert "Epoch 1 of 2 is done" in (tmp_path / "run/report.html").read_text()
        assert calls[-1] % 1000 > 500  # in the middle of a scan
        assert (tmp_path / "run/state/propagation.npz").exists()
        assert "training has not finished" in load_propagation(tmp_path / "run").warning
        with pytest.raises(DataError, match="add --resume"):
            fit_propagation(records, tmp_path / "run", CONFIG, SETTINGS)
        done = []
        fit_propagation(records, tmp_path / "run", CONFIG, SETTINGS, resume=True, progress=lambda *a: done.append(a[0]))
        assert done[0] > calls[-1]  # nothing is done again
        assert done[-1] == 1000 * 2 * len(read_json(tmp_path / "run/split.json")["train"])
        assert not (tmp_path / "run/state").exists()
        both = (finished, tmp_path / "run")
        for mine, theirs in zip(*(models.load(run / "best.keras").weights for run in both), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        rows = [[line.split(",") for line in (run / "history.csv").read_text().split()] for run in both]
        assert rows[0][0] == ["epoch", "seconds", "loss", "val_dice", "alpha", "beta", "learning_rate"]
        for mine, theirs in zip(*(row[1:] for row in rows), strict=True):
            assert [float(x) for x in mine[2:]] == pytest.approx([float(x) for x in theirs[2:]], rel=1e-12)

    def test_a_run_folder_like_any_other(self, records, finished):
        run = finished
        assert {"spec.json", "train.json", "split.json", "history.csv", "curves.png", "about.json", "best.keras"} <= {
            path.name for path in run.iterdir()
        }
        assert Propagation.load(run / "propagation.json") == SETTINGS
        with pytest.raises(DataError, match="labels no scan by itself; use 'tfmuscle propagate -m"):
            load_run(run)
        with pytest.raises(DataError, match="mode was 'per_window' when the run began and is 'halves' now"):
            fit_propagation(records, run, CONFIG, Propagation(reverse=0.5, mirror=0.5), resume=True)
        loaded = load_propagation(run)
        assert loaded.warning == "" and loaded.settings == SETTINGS
        scan = Volume(np.random.default_rng(0).uniform(0, 255, (16, 16, 12)), Geometry((16, 16, 12), np.eye(4)))
        images = prepare(loaded, scan)
        assert images.array.shape == (12, 16, 16) and images.array.dtype == np.float32
        assert images.array.mean() == pytest.approx(0, abs=1e-4)
        drawn = np.zeros((3, 16, 16, 2), np.float32)
        found = np.concatenate([masks for masks, _ in carry(network_carrier(loaded), images.array, drawn)])
        assert found.shape == (12, 16, 16, 2) and 0 <= found.min() <= found.max() <= 1

    def test_it_learns(self, records, small_network, tmp_path):
        settings = Propagation(supervision="full", mode="per_window", feedback="predicted")
        config = dataclasses.replace(CONFIG, epochs=4, learning_rate=3e-2)
        run = fit_propagation(records, tmp_path / "run", config, settings)
        history = [line.split(",") for line in (run / "history.csv").read_text().split()[1:]]
        assert float(history[-1][2]) < 0.7 * float(history[0][2])

    def test_it_starts_from_another_run(self, records, finished, small_network, tmp_path):
        still, notes = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-9), []
        fit_propagation(records, tmp_path / "run", still, SETTINGS, start=finished, say=notes.append)
        assert notes == [f"2 of 2 layers start with the weights of {finished}"]
        assert read_json(tmp_path / "run/transfer.json")["layers_taken"] == ["conv", "probabilities"]
        both = (models.load(run / "best.keras").weights for run in (finished, tmp_path / "run"))
        for mine, theirs in zip(*both, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
        (tmp_path / "other").mkdir()
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other/best.keras")
        with pytest.raises(DataError, match="no layer fits .*; its encoder is that of seg_net_fs"):
            fit_propagation(records, tmp_path / "none", still, SETTINGS, start=tmp_path / "other")

    def test_parts_are_resumed_too(self, records, small_network, monkeypatch, tmp_path):
        settings = Propagation(
            parts=3, slices=4, spoil=0.5, away=3, mode="per_window", alignment="drawn", feedback="predicted"
        )
        config = dataclasses.replace(CONFIG, epochs=1, batch_size=2)
        whole = fit_propagation(records, tmp_path / "whole", config, settings)
        monkeypatch.setattr(propagation_state, "SAVE_SECONDS", 0.0)

        def kill(done, total, note):
            if done > total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit_propagation(records, tmp_path / "run", config, settings, progress=kill)
        run = fit_propagation(records, tmp_path / "run", config, settings, resume=True)
        for mine, theirs in zip(*(models.load(one / "best.keras").weights for one in (whole, run)), strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_a_damaged_state(self, records, finished, tmp_path):
        shutil.copytree(finished, tmp_path / "run")
        (tmp_path / "run/about.json").unlink()
        (tmp_path / "run/state").mkdir()
        (tmp_path / "run/state/propagation.npz").write_bytes(b"nothing")
        with pytest.raises(DataError, match="cannot be gone on from"):
            fit_propagation(records, tmp_path / "run", CONFIG, SETTINGS, resume=True)

    def test_memory_is_that_of_one_scan(self, records):
        index = read_index(records)
        spec = DataSpec.load(records / "spec.json")
        scan = read_scan(index.folder / index.path_of(next(iter(index.usable))), spec)
        way = way_of(scan, spec, SETTINGS, [1, 2, 3], subject=0)
        assert np.shares_memory(way.images, scan.image) and np.shares_memory(way.labels, scan.labels)


class TestSettings:
    def test_the_last_two_epochs(self):
        config = TrainConfig(epochs=5, learning_rate=1e-4, schedule="last_two")
        rates = [learning_rate(config, [{}] * done) for done in range(5)]
        assert rates == pytest.approx([1e-4] * 3 + [1e-5] * 2)

    def test_the_preset(self):
        config = plan_training({}, recipe={}, preset="ifss_net")
        settings = plan_propagation(config)
        assert (config.learning_rate, config.epochs, config.schedule) == (1e-4, 10, "last_two")
        assert (settings.supervision, settings.mode, settings.alignment, settings.l2) == (
            "decremental", "halves", "window", 1e-5,
        )  # fmt: skip
        laptop = plan_training({}, recipe={}, preset="ifss_net", scale="laptop")
        assert plan_propagation(laptop, {"structures": ["soleus"]}).structures == ("soleus",)
        assert plan_propagation(laptop).mode == "per_window"

    def test_what_cannot_be(self):
        with pytest.raises(ValueError, match="unet carries no masks from slice to slice; choose ifss_net"):
            plan_propagation(TrainConfig(), {"mode": "halves"})
        assert plan_propagation(TrainConfig()) is None
        with pytest.raises(ValueError, match="unknown setting 'supervison'; did you mean 'supervision'"):
            plan_propagation(TrainConfig(model="ifss_net"), {"supervison": "full"})
        with pytest.raises(ValueError, match="reverse is 2; a share"):
            Propagation(reverse=2)
        with pytest.raises(ValueError, match="parts, away and l2 must be finite and not negative"):
            Propagation(l2=-1)
        spec = dataclasses.replace(SPEC, size=(32, 32))
        check = [spec, CONFIG, Propagation()]
        check_propagation(*check)
        with pytest.raises(ValueError, match="build records of whole scans, with --kind sequences --patches random"):
            check_propagation(dataclasses.replace(spec, patches="grid"), *check[1:])
        with pytest.raises(ValueError, match="structures: third are not among those of the records, first, second"):
            check_propagation(*check[:2], Propagation(structures=("third",)))
        with pytest.raises(ValueError, match="masks are carried over scans of one channel"):
            check_propagation(dataclasses.replace(spec, channels=("water", "fat")), *check[1:])
        with pytest.raises(ValueError, match="masks are carried in float32 or mixed_bfloat16"):
            check_propagation(spec, dataclasses.replace(CONFIG, precision="mixed_float16"), check[2])
        with pytest.raises(ValueError, match="model is 'unet', which takes no masks"):
            check_propagation(spec, dataclasses.replace(CONFIG, model="unet"), check[2])
        with pytest.raises(DataError, match="there is no such folder"):
            load_propagation("/nowhere/run")
        with pytest.raises(ValueError, match="preset ifss_net carries masks from drawn slices, and nothing is drawn"):
            candidates_of_presets(["demo", "ifss_net"], {})
        with pytest.raises(ValueError, match="preset pg_net carries masks from drawn slices, and nothing is drawn"):
            candidates_of_study("pg_net", {"epochs": [1]}, {})
        config = plan_training({}, recipe={}, preset="ifss_net")
        with pytest.raises(ValueError, match="preset ifss_net learns from whole scans; choose another"):
            fit_slices(SliceLabels("a", "b"), "run", config)


class TestCommands:
    @pytest.mark.slow
    def test_fit(self, records, tmp_path):
        wide = tmp_path / "records"
        dataset = records.parent / "scans"
        build = ["build-records", "-i", str(dataset), "-o", str(wide), "--preset", "ifss_net", "--size", "32", "32"]
        assert CliRunner().invoke(tfmuscle_group, [*build, "--folds", "3"]).exit_code == 0
        words = ["fit", "-i", str(wide), "-o", str(tmp_path / "run"), "--preset", "ifss_net", "--scale", "laptop"]
        words += ["--epochs", "1", "--option", "filters=5", "--propagation", "slices=4", "--propagation", "smallest=1"]
        result = CliRunner().invoke(tfmuscle_group, words)
        assert result.exit_code == 0, result.output
        assert "best epoch 1 of 1, validation Dice" in result.output
        carrier = network_carrier(load_propagation(tmp_path / "run"))
        assert (carrier.window, carrier.starts) == (3, 3)

    def test_what_fit_refuses(self, records, tmp_path):
        words = ["fit", "-i", str(records), "-o", str(tmp_path / "run")]
        for more, why in (
            (["--preset", "ifss_net", "--propagation", "mode=all"], "mode is 'all'; choose one of halves, per_window"),
            (["--model", "unet", "--propagation", "mode=halves"], "unet carries no masks from slice to slice"),
            (["--preset", "ifss_net"], "size (16, 16): ifss_net needs multiples of 32"),
            (["--preset", "ifss_net", "--propagation", "x"], "--propagation 'x' is not NAME=VALUE"),
        ):
            result = CliRunner().invoke(tfmuscle_group, [*words, *more])
            assert result.exit_code != 0
            assert why in " ".join(result.output.replace("│", " ").split()), result.output
        assert not (tmp_path / "run").exists()


class TestRivals:
    def test_the_presets(self):
        for name in ("seg_net_fs", "unet3d", "vnet", "daf3d"):
            config = plan_training({}, recipe={}, preset=name)
            assert config.model == name and plan_propagation(config) is None
            spec = plan_spec_of(name, (64, 64))
            models.check_spec(config.model, spec, **config.model_options)
            assert spec.input_shape == (3, 64, 64, 1)
        assert plan_spec_of("pg_net", (64, 64)).input_shape == (64, 64, 1)
        config = plan_training({}, recipe={}, preset="pg_net", scale="laptop")
        check_propagation(plan_spec_of("pg_net", (64, 64)), config, plan_propagation(config))

    def test_a_loss_whose_weights_are_learned(self):
        config = plan_training({"model_options": {"filters": 5}}, recipe={}, preset="seg_net_fs")
        model = supervised._compiled(plan_spec_of("seg_net_fs", (32, 32)), config, [])
        held = model.get_layer("probabilities")
        assert model.loss == held.loss
        assert any(weight is held.theta for weight in model.trainable_variables)

    def test_windows_of_whole_scans_are_segmented(self, records, tmp_path):
        settings = {
            "epochs": 1,
            "steps": 2,
            "batch_size": 2,
            "model_options": {"filters": 2, "levels": 2, "norm": "batch"},
        }
        run = fit(records, tmp_path / "run", plan_training(settings, recipe={"augmentation": "none"}))
        scan = Volume(np.random.default_rng(0).uniform(0, 255, (16, 16, 12)), Geometry((16, 16, 12), np.eye(4)))
        assert predict_volume(load_run(run), scan, mirror=False).array.shape == (16, 16, 12)


def plan_spec_of(preset, size):
    return dataclasses.replace(DataSpec(SPEC.label_map, **get_preset(preset).data), size=size)
