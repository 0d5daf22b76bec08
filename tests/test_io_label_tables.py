"""Label tables of other programs; expected names are read off the files by eye."""

import json

import nibabel as nib
import numpy as np
import pytest

from tfmuscle.errors import DataError
from tfmuscle.io import case_files, read_label_image, write_volume
from tfmuscle.io.label_tables import embedded_label_map, plain_name, read_label_table
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

SNAP = """# ITK-SnAP Label Description File
    0     0    0    0        0  0  0    "Clear Label"
    1   103    0   31        1  1  1    "Vastus lateralis (left)"
    7   178   24   43      0.5  1  0    "RF"
"""
SLICER = "# Color table file\n# 3 values\n0 background 0 0 0 0\n9 femur 2 1 1 255\n12 'tibia left' 1 2 3 255\n"
NAMES = {
    "snap.label": (SNAP, {1: "vastus_lateralis_left", 7: "rf"}),
    "slicer.ctbl": (SLICER, {9: "femur", 12: "tibia_left"}),
    "table.csv": ("id, name\n3,Femur L\n4,Tibia L\n", {3: "femur_l", 4: "tibia_l"}),
    "dataset.json": (json.dumps({"labels": {"background": 0, "femur": 2}}), {2: "femur"}),
    "spec.json": (json.dumps({"label_map": {"femur": 2}, "name": "x"}), {2: "femur"}),
    "decathlon.json": (json.dumps({"labels": {"0": "background", "1": "Anterior"}}), {1: "anterior"}),
    "ids.json": (json.dumps({"1": "femur", "2": "tibia"}), {1: "femur", 2: "tibia"}),
}


@pytest.mark.parametrize("name", NAMES)
def test_formats(name, tmp_path):
    text, expected = NAMES[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert {k: v for k, v in read_label_table(tmp_path / name).names.items() if k} == expected


def test_the_ignore_id_is_kept(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "femur": 2, "ignore": 9}}))
    assert read_label_table(tmp_path / "dataset.json").ignore == 9


def test_the_name_ignore_is_the_ignore_id(tmp_path):
    """As ITK-SNAP's table has it, which knows no other way to say so."""
    (tmp_path / "snap.label").write_text(SNAP + '  255   1   2   3   1  1  1  "ignore"\n')
    table = read_label_table(tmp_path / "snap.label")
    assert table.ignore == 255 and table.structures == ("vastus_lateralis_left", "rf")


BAD = {
    "twice.csv": ("id,name\n1,femur\n1,tibia\n", "there twice"),
    "same.csv": ("id,name\n1,femur\n2,Femur\n", "there twice"),
    "columns.csv": ("number,label\n1,femur\n", "columns id and name"),
    "prose.txt": ("These are my labels.\n", "has no id and name"),
    "open.txt": ("1 'femur\n", "no usable label table"),
    "list.json": ("[1, 2]", "no object"),
    "deep.json": ("[" * 200_000, "no usable label table"),
    "wide.csv": ("id,name\n1," + "a" * 200_000 + "\n", "no usable label table"),
    "nameless.csv": ("id,name\n1,femur\n2,\n", "line 3 gives the id 2 no name"),
    "short.csv": ("id,name\n1\n", "line 2 gives the id 1 no name"),
    "number.csv": ("id,name\n1,femur\nx,tibia\n", "line 3 has the id 'x'; a whole number"),
    "nameless.label": (SNAP + '    8   1   2   3   1  1  1  ""\n', "line 5 gives the id 8 no name"),
    "seven.label": (SNAP + "    8   1   2   3   1  1  1\n", "line 5 gives the id 8 no name"),
    "nameless.ctbl": ("9 femur 2 1 1 255\n10 '' 2 1 1 255\n", "line 2 gives the id 10 no name"),
    "nameless.json": (json.dumps({"labels": {"": 3}}), "the id 3 has no name"),
    "unknown.csv": ("id,name\n1,femur\n8,ignore\n9,ignore\n", "name 'ignore' is there twice"),
    "both.csv": ("id,name\n1,ignore\n1,femur\n", "id 1 .* there twice"),
    "cut.json": ('{"labels": {', "no usable label table"),
    "empty.ctbl": ("# nothing\n", "no structure"),
    "binary.label": (b"\xff\xfe\x00\x80", "no usable label table"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_one_clear_line(name, tmp_path):
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=reason):
        read_label_table(tmp_path / name)


def test_a_missing_and_an_endless_table(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_label_table(tmp_path / "none.csv")
    (tmp_path / "long.csv").write_bytes(b"id,name\n" + b" " * (5 << 20))
    with pytest.raises(DataError, match="far too long"):
        read_label_table(tmp_path / "long.csv")


@pytest.mark.parametrize("text", ["../../etc/passwd", "femur/left", "a\x00b", "  ", "Ä?"])
def test_plain_names_are_harmless_file_names(text):
    name = plain_name(text)
    assert name and not set(name) & set("/\\. \x00") and plain_name(name) == name


CAMEL_CASE = {
    "SoleusLeft": "soleus_left",
    "psoasLeft": "psoas_left",
    "SoleusL": "soleus_l",
    "LeftSoleus": "left_soleus",
    "TibialisLeftAnterior": "tibialis_left_anterior",
    "VastusLateralis": "vastuslateralis",
    "GluteusMaximusL4": "gluteusmaximusl4",
    "soleusleft": "soleusleft",
}


@pytest.mark.parametrize("text", CAMEL_CASE)
def test_sides_of_camel_case_names_stay(text):
    assert plain_name(text) == CAMEL_CASE[text]
    assert LabelMap.side(plain_name(text)) == LabelMap.side(text)


def test_names_inside_a_nifti_header(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    table = '<LabelTable><Label Key="3" Red="0"><![CDATA[Femur left]]></Label><Label Key="4">hip</Label></LabelTable>'
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, table.encode()))
    nib.save(image, tmp_path / "labels.nii.gz")
    assert embedded_label_map(tmp_path / "labels.nii.gz").names == {0: "background", 3: "femur_left", 4: "hip"}
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "plain.nii.gz")
    assert embedded_label_map(tmp_path / "plain.nii.gz") is None
    assert embedded_label_map(tmp_path / "none.nii.gz") is None


def test_real_tables(data_dir):
    thigh = read_label_table(data_dir / "thigh_fat_water" / "labels.itksnap.label")
    assert thigh.names[2] == "rf" and len(thigh.structures) == 11
    knee = read_label_table(data_dir / "knee_atlas" / "knee.ctbl")
    assert knee.names[12] == "vastus_lateralis_muscle"
    pelvis = embedded_label_map(data_dir / "pelvis_ct" / "labels_model_output.nii.gz")
    assert pelvis.names[2] == "kidney_right"


@pytest.mark.parametrize(("values", "kind"), [([0.0, 3.0], np.uint8), ([0, 300], np.uint16), ([1, 3e9], np.uint32)])
def test_whole_numbers_are_ids_however_they_are_stored(values, kind, tmp_path):
    array = np.array(values, np.float64).reshape(1, 1, 2)
    write_volume(tmp_path / "l.nii.gz", Volume(array, Geometry((1, 1, 2), np.eye(4))))
    read = read_label_image(tmp_path / "l.nii.gz").array
    assert read.dtype == kind and read.ravel().tolist() == values


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf, 1e30])
def test_grey_values_are_no_labels(value, tmp_path):
    array = np.array([0, value], np.float64).reshape(1, 1, 2)
    write_volume(tmp_path / "l.nii.gz", Volume(array, Geometry((1, 1, 2), np.eye(4))))
    with pytest.raises(DataError, match=r"l.nii.gz: labels must be whole numbers from 0 on"):
        read_label_image(tmp_path / "l.nii.gz")


def test_two_files_of_one_name_are_refused(tmp_path):
    for name in ("b.nii.gz", "a.nrrd"):
        (tmp_path / name).touch()
    assert list(case_files(tmp_path)) == ["a", "b"]
    (tmp_path / "b.mha").touch()
    with pytest.raises(DataError, match=r"b.nii.gz: b.mha is 'b' too; keep one of them"):
        case_files(tmp_path)
