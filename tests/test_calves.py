"""Sweeps along made-up calves: blocks of voxels whose places and sizes are known."""

import importlib
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tfmuscle.subjects import read_dataset

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
sweeps = importlib.import_module("sweeps")

NAMES = {"1": "soleus", "2": "gastrocnemius medial head", "3": "gastrocnemius lateral head", "4": "tibia"}


def calf():
    """A left calf `(30, 30, 50)`, 1 mm, RAS: its medial side looks to the right, where x is large."""
    array = np.zeros((30, 30, 50), np.uint8)
    array[8:22, 10:20, 5:35] = 1
    array[16:22, 4:10, 15:45] = 2
    array[8:14, 4:10, 15:40] = 3
    array[12:18, 22:27, :] = 4
    return array


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calves")
    for name, array in (("VHF_Left", calf()), ("VHF_Right", calf()[::-1]), ("VHM_Left", calf())):
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}_labels_1mm.nii.gz")
        (folder / f"{name}_labels_1mm.json").write_text(json.dumps({"labels": NAMES}), encoding="utf-8")
    words = ["--data", str(folder), "-o", str(folder / "out"), "--deformed", "1", "--spacing", "1", "1", "1"]
    sweeps.main(words)
    sweeps.main(words)  # what is there stays
    with pytest.raises(SystemExit, match="holds other files; name another folder"):
        sweeps.main([*words, "--seed", "3"])
    return folder / "out"


def test_sweeps_of_three_calves_and_their_relatives(dataset):
    found = read_dataset(dataset)
    expected = [f"{name}_{version}" for name in ("vhf_left", "vhf_right", "vhm_left") for version in (0, 1)]
    assert [subject.subject_id for subject in found.subjects] == expected
    assert found.label_map.structures == ("soleus", "gastrocnemius_medial_head", "gastrocnemius_lateral_head")


def test_a_calf_is_cut_to_its_muscles_and_a_right_one_is_mirrored(dataset):
    # from the lowest voxel of soleus (5) to the highest of gastrocnemius (44): 40 slices; blocks count as drawn
    left, right = (nib.load(dataset / f"labelsTr/{name}_0.nii.gz") for name in ("vhf_left", "vhf_right"))
    for labels in (left, right):
        array = np.asarray(labels.dataobj)
        assert array.shape[2] == 40
        assert np.bincount(array.ravel())[1:].tolist() == [14 * 10 * 30, 6 * 6 * 30, 6 * 6 * 25]
        places = [np.argwhere(array == key).mean(axis=0) for key in (1, 2, 3)]
        assert places[1][0] > places[2][0]  # medial at large x: a left calf, from both
        assert places[0][1] > places[1][1]  # gastrocnemius is nearer to the probe, at the back


def test_the_probe_sees_bone_cast_a_shadow(dataset):
    image = np.asarray(nib.load(dataset / "imagesTr/vhf_left_0_0000.nii.gz").dataobj).astype(float)
    labels = np.asarray(nib.load(dataset / "labelsTr/vhf_left_0.nii.gz").dataobj)
    assert image.min() >= 0 and image.max() <= 255
    soleus = np.argwhere(labels == 1)
    front = soleus[:, 1].max()
    behind = image[:, front + 12 :, 10:20]  # behind the tibia, 5 mm thick, 2 mm after soleus
    assert behind.mean() < 0.5 * image[labels == 1].mean()


def test_sizes_that_are_none_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweeps.main(["--data", str(tmp_path), "-o", str(tmp_path / "x"), "--spacing", "0", "1", "1"])
    assert "three positive numbers in mm" in capsys.readouterr().err
