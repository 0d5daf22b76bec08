"""`propagate` on small scans: drawn slices stay, flips change nothing, corrections, resuming, and what is refused."""

import csv
import dataclasses
import re
import shutil

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from propagation_samples import SPEC, tiny

from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import Propagation, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, sha256, write_json
from tfmuscle.inference.propagation import carrier_of_several, load_propagation, network_carrier, prepare
from tfmuscle.io import read_label_image, read_volume, write_volume
from tfmuscle.io.label_tables import names_of
from tfmuscle.labels import LabelMap
from tfmuscle.propagation.carriers import Carrier, carry
from tfmuscle.propagation.methods import Method, make_method
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows import propagating
from tfmuscle.workflows.propagating import Propagating, propagate
from tfmuscle.workflows.slices import SliceLabels

SHAPE, SPACING = (50, 52, 24), (1.0, 1.0, 2.0)
DRAWN = (3, 10, 18)
NAMES = {"background": 0, "soleus": 2, "gracilis": 5}


def command(*words):
    return CliRunner().invoke(tfmuscle_group, [str(word) for word in words])


def legs():
    """Two muscles side by side that move: image and ids `(I, J, K)`."""
    i, j, k = np.indices(SHAPE)
    y, x = i - 22 - 0.4 * k, j - 24 + 0.3 * k
    inside = (y / 11) ** 2 + (x / 14) ** 2 < 1
    ids = np.where(inside, np.where(x < 0, 2, 5), 0).astype(np.uint8)
    image = np.random.default_rng(0).normal(0, 5, SHAPE) + np.select([ids == 2, ids == 5], [100, 160], 20)
    return image.astype(np.float32), ids


def geometry(shape=SHAPE, oblique=False):
    affine = np.diag([*SPACING, 1.0])
    if oblique:
        cos, sin = np.cos(0.3), np.sin(0.3)
        affine = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ affine
    affine[:3, 3] = -30, 10, 100
    return Geometry(shape, affine)


def few(ids, slices=DRAWN):
    array = np.zeros_like(ids)
    array[..., list(slices)] = ids[..., list(slices)]
    return array


@pytest.fixture
def case(tmp_path):
    """A scan and three drawn slices on disk."""
    image, ids = legs()
    write_volume(tmp_path / "leg.nii.gz", Volume(image, geometry()))
    write_volume(tmp_path / "drawn.nii.gz", Volume(few(ids), geometry()))
    write_json(tmp_path / "drawn.json", {"labels": NAMES})
    return SliceLabels(tmp_path / "leg.nii.gz", tmp_path / "drawn.nii.gz")


@pytest.fixture
def steps(monkeypatch):
    """Stands in for registration: counts steps, stops where told."""
    seen = {"count": 0, "stop": None}

    def step(images, masks):
        if seen["count"] == seen["stop"]:
            raise KeyboardInterrupt
        seen["count"] += 1
        return masks

    def make(name, spacing):
        return Method(name, carrier=Carrier(1, 1, lambda *_: step))

    monkeypatch.setattr(propagating, "make_method", make)
    return seen


def correct(path, index, key=0):
    """Corrects a slice of the labels as an editor would."""
    labels = read_label_image(path)
    array = labels.array.copy()
    array[15:20, 15:20, index] = key
    write_volume(path, labels.with_array(array))
    return array


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_from_three_drawn_slices_to_all(case, tmp_path):
    out = tmp_path / "all.nii.gz"
    done = []
    result = propagate(case, out, progress=lambda count, total, note: done.append((count, total)))
    found, truth = read_label_image(out), legs()[1]
    assert found.geometry.same_grid(read_volume(case.scan).geometry)
    assert np.array_equal(found.array[..., DRAWN], truth[..., DRAWN])
    for key in (2, 5):
        assert dice(found.array == key, truth == key) > 0.95
    assert names_of(out).to_dict() == NAMES
    # 3 + 1 slices before, 6 + 1 and 7 + 1 between both ways, 5 after; something arrives at either end of a gap.
    assert done[-1] == (3 + 2 * 7 + 2 * 8 + 5, 3 + 2 * 7 + 2 * 8 + 5)
    assert [count for count, _ in done] == sorted(count for count, _ in done)
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert {(row["slice"], row["way"]) for row in rows} == {
        ("3", "backward"), ("10", "forward"), ("10", "backward"), ("18", "forward")}  # fmt: skip
    assert all(float(row["dice"]) > 0.9 for row in rows) and len(rows) == 8
    about = read_json(tmp_path / "all.json")
    assert about["drawn"] == list(DRAWN) and about["method"] == "registration" and about["drift"][0]["slice"] == 3
    for name, key in (("soleus", 2), ("gracilis", 5)):
        volume, low, high = result.report.volumes_ml[name]
        assert volume == pytest.approx((found.array == key).sum() * 0.002)
        assert low < (truth == key).sum() * 0.002 < high and low < volume < high
    assert len(about["redraw"]) == 3 and not {row["slice"] for row in about["redraw"]} & set(DRAWN)
    assert (tmp_path / "all.png").stat().st_size > 10_000
    assert (result.stretches, result.fresh, result.corrected) == (4, 4, ())


@pytest.mark.parametrize("method", ["registration", "interpolate"])
@pytest.mark.parametrize("flips", [(), (2,), (0, 1), (0, 2)])
def test_flipped_and_oblique_grids_give_the_same_labels(case, tmp_path, method, flips):
    propagate(case, tmp_path / "straight.nii.gz", Propagating(method=method))
    image, ids = legs()
    grid = geometry(oblique=True)
    affine = grid.affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
        affine[:3, axis] *= -1
    turned = Geometry((SHAPE[2], *SHAPE[:2]), affine[:, [2, 0, 1, 3]])  # slices first, as some files have them
    for name, array in (("image", image), ("few", few(ids))):
        flipped = np.moveaxis(np.flip(array, flips), 2, 0)
        write_volume(tmp_path / f"{name}.nii.gz", Volume(flipped, turned))
    write_json(tmp_path / "few.json", {"labels": NAMES})
    source = SliceLabels(tmp_path / "image.nii.gz", tmp_path / "few.nii.gz")
    result = propagate(source, tmp_path / "turned.nii.gz", Propagating(method=method))
    found = read_label_image(tmp_path / "turned.nii.gz")
    assert found.geometry.same_grid(turned)
    back = np.flip(np.moveaxis(found.array, 0, 2), flips)
    assert np.array_equal(back, read_label_image(tmp_path / "straight.nii.gz").array)
    numbers = sorted({row["slice"] for row in result.report.drift})
    wanted = [SHAPE[2] - 1 - index for index in DRAWN] if 2 in flips else list(DRAWN)
    assert numbers == sorted(wanted if method == "registration" else [wanted[1]])


def test_a_mirrored_scan_gives_the_mirrored_labels(case, tmp_path):
    """Mirrored along the slices, so that forward is backward, on a grid that is not."""
    image, ids = legs()
    straight = propagate(case, tmp_path / "straight.nii.gz")
    write_volume(tmp_path / "mirror.nii.gz", Volume(image[..., ::-1], geometry()))
    write_volume(tmp_path / "few.nii.gz", Volume(few(ids)[..., ::-1], geometry()))
    source = SliceLabels(tmp_path / "mirror.nii.gz", tmp_path / "few.nii.gz", names=tmp_path / "drawn.json")
    mirrored = propagate(source, tmp_path / "labels.nii.gz")
    one, other = (read_label_image(tmp_path / f"{name}.nii.gz").array for name in ("straight", "labels"))
    assert (one != other[..., ::-1]).sum() <= 2e-4 * one.size  # sums of the smoothing are rounded the other way
    swap = {"forward": "backward", "backward": "forward"}
    there = {(row["slice"], row["structure"], row["way"]): row["dice"] for row in straight.report.drift}
    for row in mirrored.report.drift:
        key = (SHAPE[2] - 1 - row["slice"], row["structure"], swap[row["way"]])
        assert row["dice"] == pytest.approx(there[key], abs=0.01)


@pytest.mark.parametrize("method", ["interpolate", "grow", "watershed"])
def test_methods_without_directions(case, tmp_path, method):
    result = propagate(case, tmp_path / "all.nii.gz", Propagating(method=method))
    found, truth = read_label_image(tmp_path / "all.nii.gz").array, legs()[1]
    assert np.array_equal(found[..., DRAWN], truth[..., DRAWN])
    assert dice(found[..., 3:19] > 0, truth[..., 3:19] > 0) > 0.9
    assert {(row["slice"], row["way"]) for row in result.report.drift} == {(10, "left out")}
    assert any("nothing beyond the outermost" in note for note in result.notes) == (method == "interpolate")


def test_one_direction_alone_leaves_the_other_end_empty(case, tmp_path):
    result = propagate(case, tmp_path / "all.nii.gz", Propagating(direction="forward"))
    found = read_label_image(tmp_path / "all.nii.gz").array
    assert not found[..., :3].any() and found[..., 23].any()
    assert {row["way"] for row in result.report.drift} == {"forward"}


def test_one_drawn_slice_and_a_structure_that_is_on_some_only(case, tmp_path):
    ids = few(legs()[1], (10,))
    write_volume(case.labels, Volume(ids, geometry()))
    axis = dataclasses.replace(case, axis=2)
    result = propagate(axis, tmp_path / "one.nii.gz")
    assert result.report.drift == [] and any("drift and the intervals are guessed" in note for note in result.notes)
    assert all(low < volume < high for volume, low, high in result.report.volumes_ml.values())
    assert (read_label_image(tmp_path / "one.nii.gz").array > 0).any(axis=(0, 1)).all()
    ids = few(legs()[1])
    ids[..., 18] = np.where(ids[..., 18] == 5, 0, ids[..., 18])
    write_volume(case.labels, Volume(ids, geometry()))
    result = propagate(case, tmp_path / "ends.nii.gz")
    found = read_label_image(tmp_path / "ends.nii.gz").array
    assert (found[..., 11] == 5).any() and not (found[..., 18:] == 5).any()
    row = next(row for row in result.report.drift if (row["slice"], row["structure"]) == (18, "gracilis"))
    assert row["dice"] == 0 and row["drawn_mm2"] == 0  # it arrives where none is drawn
    ids[ids == 5] = 0
    write_volume(case.labels, Volume(ids, geometry()))
    result = propagate(case, tmp_path / "alone.nii.gz")
    assert "on no drawn slice: gracilis" in result.notes and set(result.report.volumes_ml) == {"soleus"}


def test_empty_slices_count_when_they_are_listed(case, tmp_path, steps):
    listed = dataclasses.replace(case, axis=2, listed=(3, 10, 18, 22))
    propagate(listed, tmp_path / "all.nii.gz")
    found = read_label_image(tmp_path / "all.nii.gz").array.any(axis=(0, 1))
    assert found[:20].all() and not found[21:].any()


def test_an_interrupted_call_goes_on_where_it_stopped(case, tmp_path, steps):
    out = tmp_path / "all.nii.gz"
    steps["stop"] = 12
    with pytest.raises(KeyboardInterrupt):
        propagate(case, out)
    assert not out.exists()
    steps["stop"] = None
    result = propagate(case, out)
    # Each way has a step for its first slice and for every one after: 4 + 2 * 8 + 2 * 9 + 6.
    assert steps["count"] == 4 + 16 + 18 + 6 and result.fresh < result.stretches
    assert propagate(case, out).fresh == 0 and steps["count"] == 44


def test_corrections_in_the_annotations_or_in_the_labels(case, tmp_path, steps):
    out = tmp_path / "all.nii.gz"
    propagate(case, out)
    steps["count"] = 0
    correct(case.labels, 18)
    assert propagate(case, out, Propagating(update=True)).fresh == 2
    assert steps["count"] == 2 * 9 + 6  # the stretches on both sides of slice 18
    steps["count"] = 0
    edited = correct(out, 14, key=5)
    with pytest.raises(DataError, match="or has corrections since; --update takes those as drawn slices"):
        propagate(case, out)
    result = propagate(case, out, Propagating(update=True))
    assert result.corrected == (14,) and result.slices.indices == (3, 10, 14, 18) and result.fresh == 2
    assert steps["count"] == 4 * 5  # 10 to 14 and 14 to 18, both ways
    assert np.array_equal(read_label_image(out).array[..., 14], edited[..., 14])
    assert propagate(case, out).corrected == (14,)  # remembered, and unedited labels are no correction
    edited = correct(out, 14, key=2)
    assert propagate(case, out, Propagating(update=True)).fresh == 2
    assert np.array_equal(read_label_image(out).array[..., 14], edited[..., 14])
    assert read_json(tmp_path / "all.json")["corrected"] == [14]
    assert len(list((tmp_path / "all_propagation" / "stretches").iterdir())) == 5  # those of before are gone


def test_a_killed_call_loses_no_correction(case, tmp_path, steps):
    out = tmp_path / "all.nii.gz"
    propagate(case, out)
    edited = correct(out, 7, key=5)
    steps["stop"] = steps["count"] + 3
    with pytest.raises(KeyboardInterrupt):
        propagate(case, out, Propagating(update=True))
    assert np.array_equal(read_label_image(out).array, edited)
    steps["stop"] = None
    assert propagate(case, out, Propagating(update=True)).corrected == (7,)
    assert np.array_equal(read_label_image(out).array[..., 7], edited[..., 7])
    (tmp_path / "all_propagation" / "corrected.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"corrected\.npz: is damaged; remove it"):
        propagate(case, out)


def test_another_scan_or_method_is_done_anew(case, tmp_path, steps):
    out = tmp_path / "all.nii.gz"
    propagate(case, out)
    assert propagate(case, out, Propagating(fuse="mean")).fresh == 4
    scan = read_volume(case.scan)
    write_volume(case.scan, scan.with_array(scan.array + 1))
    assert propagate(case, out, Propagating(fuse="mean")).fresh == 4


def test_outputs_of_others_are_not_replaced(case, tmp_path, steps):
    out = tmp_path / "all.nii.gz"
    out.write_bytes(b"mine")
    with pytest.raises(DataError, match="was not written by this command, or has corrections since; name another"):
        propagate(case, out, Propagating(update=True))
    assert out.read_bytes() == b"mine"
    write_json(tmp_path / "other.json", {"made_by": "me"})
    with pytest.raises(DataError, match=r"other\.json: holds something else"):
        propagate(case, tmp_path / "other.nii.gz")
    (tmp_path / "third_propagation").mkdir()
    (tmp_path / "third_propagation" / "thesis.txt").write_text("")
    with pytest.raises(DataError, match="third_propagation: holds something else"):
        propagate(case, tmp_path / "third.nii.gz")
    for path in (case.scan, case.labels):
        before = sha256(path)
        with pytest.raises(DataError, match="is an input and would be lost"):
            propagate(case, path)
        assert sha256(path) == before
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(DataError, match=r"folder\.nii\.gz: is a folder"):
        propagate(case, tmp_path / "folder.nii.gz")
    with pytest.raises(ValueError, match="volumes are written as"):
        propagate(case, tmp_path / "all.png")


def test_edited_labels_that_cannot_be_taken(case, tmp_path, steps):
    out = tmp_path / "all.nii.gz"
    propagate(case, out)
    good = out.read_bytes()
    correct(out, 5, key=77)
    with pytest.raises(DataError, match=r"ids \[77\] have no name"):
        propagate(case, out, Propagating(update=True))
    out.write_bytes(good)
    labels = read_label_image(out)
    write_volume(out, Volume(labels.array[:-1], geometry((49, 52, 24))))
    with pytest.raises(DataError, match="has another grid than it was written with"):
        propagate(case, out, Propagating(update=True))


def test_annotations_that_cannot_be_used(case, tmp_path):
    image, ids = legs()
    out = tmp_path / "all.nii.gz"
    write_volume(case.labels, Volume(few(ids)[:-2], geometry((48, 52, 24))))
    with pytest.raises(DataError, match="not on the grid of"):
        propagate(case, out)
    write_volume(case.labels, Volume(np.zeros_like(ids), geometry()))
    with pytest.raises(DataError, match="nothing is labelled; label some slices"):
        propagate(case, out)
    write_volume(case.labels, Volume(np.where(few(ids) == 5, 9, few(ids)), geometry()))
    with pytest.raises(DataError, match=r"ids \[9\] have no name"):
        propagate(case, out)
    with pytest.raises(DataError, match="there is no such"):
        propagate(dataclasses.replace(case, labels=tmp_path / "none.nii.gz"), out)
    for wrong, message in (
        ({"method": "magic"}, "method is 'magic'; choose one of registration"),
        ({"runs": (tmp_path,), "method": "grow"}, "a network and the method grow are given"),
        ({"count": 0}, "0 slices are wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            Propagating(**wrong)
    with pytest.raises(DataError, match="holds no network that carries masks"):
        write_volume(case.labels, Volume(few(ids), geometry()))
        propagate(case, out, Propagating(runs=(tmp_path,)))
    assert not out.exists()


@pytest.fixture
def run(tmp_path):
    """The run folder of a network that nobody trained."""
    spec = dataclasses.replace(SPEC, size=(48, 56), normalisation="zscore", label_map=LabelMap({1: "any"}))
    folder = tmp_path / "run"
    folder.mkdir()
    keras.utils.set_random_seed(0)
    tiny(spec).save(folder / "best.keras")
    for name, content in (("spec", spec), ("train", TrainConfig(model="ifss_net")), ("propagation", Propagation())):
        write_json(folder / f"{name}.json", content.to_dict())
    return folder


def test_a_network_in_its_own_frame(case, run, tmp_path):
    out = tmp_path / "all.nii.gz"
    result = propagate(case, out, Propagating(runs=(run,)))
    found, truth = read_label_image(out), legs()[1]
    assert found.geometry.same_grid(geometry()) and np.array_equal(found.array[..., DRAWN], truth[..., DRAWN])
    assert any("training has not finished" in note for note in result.notes)
    assert read_json(tmp_path / "all.json")["method"] == "network"
    # The images of the working frame are (slices, columns of the file, rows): the file's axes reversed.
    network = load_propagation(run)
    images = prepare(network, read_volume(case.scan)).array
    masks = np.stack([truth == 2, truth == 5], axis=-1).transpose(2, 1, 0, 3)[18:19].astype(np.float32)
    carried = np.concatenate([settled for settled, _ in carry(network_carrier(network), images[18:], masks)])
    carried = np.rint(carried * 255)  # as they are kept
    judge = np.where(carried.max(axis=-1) >= 127.5, np.array([2, 5])[carried.argmax(axis=-1)], 0)
    assert set(np.unique(judge)) > {0} and np.array_equal(judge[1:], found.array.transpose(2, 1, 0)[19:])
    assert propagate(case, out, Propagating(runs=(run,))).fresh == 0
    other = load_propagation(run).model
    other.set_weights([weight + 0.1 for weight in other.get_weights()])
    other.save(run / "best.keras")
    assert propagate(case, out, Propagating(runs=(run,))).fresh == 4  # other weights are another method


def test_networks_of_one_structure_each(case, run, tmp_path):
    """Each structure goes as its own network carries it; the other's weights do not matter."""
    names = {2: "soleus", 5: "gracilis"}
    runs = []
    for number, name in enumerate(names.values()):
        runs.append(tmp_path / name)
        shutil.copytree(run, runs[-1])
        write_json(runs[-1] / "propagation.json", Propagation(structures=(name,)).to_dict())
        network = load_propagation(runs[-1]).model
        network.set_weights([weight + 0.1 * number for weight in network.get_weights()])
        network.save(runs[-1] / "best.keras")
    carriers = [network_carrier(load_propagation(one)) for one in runs]
    both = carrier_of_several([load_propagation(one) for one in runs[::-1]], list(names.values()))
    rng = np.random.default_rng(0)
    images, masks = rng.normal(size=(3, 48, 56)).astype(np.float32), rng.random((3, 48, 56, 2)).astype(np.float32)
    found = both.begin(images, masks)(images, masks)
    for number, carrier in enumerate(carriers):
        alone = carrier.begin(images, masks[..., [number]])(images, masks[..., [number]])
        np.testing.assert_array_equal(found[..., [number]], alone)
    result = propagate(case, tmp_path / "all.nii.gz", Propagating(runs=tuple(runs)))
    assert result.fresh and propagate(case, tmp_path / "all.nii.gz", Propagating(runs=tuple(runs))).fresh == 0
    write_json(runs[0] / "propagation.json", Propagation(structures=("other",)).to_dict())
    with pytest.raises(DataError, match=f"none of the networks learned {names[2]}, only {names[5]}, other; give one"):
        propagate(case, tmp_path / "all.nii.gz", Propagating(runs=tuple(runs)))
    write_json(runs[0] / "spec.json", read_json(runs[0] / "spec.json") | {"size": [64, 64]})
    with pytest.raises(DataError, match="trained on other records than"):
        propagate(case, tmp_path / "all.nii.gz", Propagating(runs=tuple(runs)))


def test_networks_that_do_not_fit(case, run, tmp_path):
    spec = read_json(run / "spec.json")
    write_json(run / "spec.json", spec | {"orientation": "LSP"})
    with pytest.raises(DataError, match="along axis 2 .S/I., but the network goes along R/L; draw slices across that"):
        propagate(case, tmp_path / "all.nii.gz", Propagating(runs=(run,)))
    write_json(run / "spec.json", spec | {"spacing": [4.0, 2.0, 2.0]})
    with pytest.raises(DataError, match="was trained on resampled scans"):
        propagate(case, tmp_path / "all.nii.gz", Propagating(runs=(run,)))


def test_the_command(case, tmp_path):
    out = tmp_path / "all.nii.gz"
    words = ("propagate", "-i", case.scan, "-a", case.labels, "-o", out, "--method", "interpolate")
    done = command(*words, "-n", 2)
    assert done.exit_code == 0, done.output
    assert re.search(
        r"soleus: [\d.]+ ml \([\d.]+ to [\d.]+\); arrives .* Dice of 0\.9\d+ at worst \(slice 10, left", done.output
    )
    assert done.output.count("redraw slice") == 2
    assert "from 3 drawn slices along axis 2; 5 of 5 stretches done now" in done.output
    correct(out, 6, key=5)
    refused = command(*words)
    assert refused.exit_code == 1 and "--update takes those as drawn slices" in refused.output
    again = command(*words, "--update", "--slices", "3,10,18")
    assert again.exit_code == 0, again.output
    assert "from 4 drawn slices along axis 2, 1 of them corrected in the labels" in again.output
    wrong = command(*words, "--direction", "forward")
    assert wrong.exit_code == 2 and "interpolate looks at both ends at once" in wrong.output
    assert command(*words, "--slices", "a").exit_code == 2


def test_the_command_and_the_library_know_the_same_methods():
    options = {option.name: option for option in tfmuscle_group.commands["propagate"].params}
    assert set(options["method"].type.choices) == set(propagating.METHODS)
    for name in options["method"].type.choices:
        assert make_method(name, SPACING).name == name
