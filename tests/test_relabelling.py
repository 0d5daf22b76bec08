"""Another tool's labels under other names: judged voxel by voxel in a loop, by hand, and by files nibabel wrote."""

import json

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle.cli import tfmuscle_group as cli
from tfmuscle.errors import DataError
from tfmuscle.io import read_label_image
from tfmuscle.io.label_tables import embedded_label_map, names_of, plain_name, read_label_table
from tfmuscle.label_lists import LISTS
from tfmuscle.labels import LOWER_LIMB_MUSCLES, LabelMap
from tfmuscle.relabelling import (
    check_renaming,
    list_map,
    new_map,
    new_names,
    read_renaming,
    renumbered,
    standard_name,
    tool_names,
)
from tfmuscle.subjects import read_dataset
from tfmuscle.workflows import relabelling
from tfmuscle.workflows.relabelling import relabel_files
from tfmuscle.workflows.slices import SliceLabels, slices_dataset

HEADS = {7101: "vastus_lateralis_left", 7111: "vastus_intermedius_left", 7121: "vastus_medialis_left"}
AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 3, -7], [0, 1, 0, 11], [0, 0, 0, 1]])  # 6 cubic mm a voxel, left-handed
QUADRICEPS = "from,to\nvastus lateralis left,Quadriceps\n7111,quadriceps\nVastus_Medialis_Left,quadriceps\n"


def write(path, array, names=None):
    """Writes labels as nibabel does, with the header that TotalSegmentator makes when there are names."""
    image = nib.Nifti1Image(array, AFFINE)
    if names:
        rows = "\n".join(f'<Label Key="{key}" Red="0.0"><![CDATA[{name}]]></Label>' for key, name in names.items())
        xml = f"<CaretExtension><LabelTable>\n{rows}\n</LabelTable></CaretExtension>"
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, xml.encode()))
    nib.save(image, path)
    return path


@pytest.fixture
def thigh(tmp_path):
    """Random ids of MuscleMap without names, 70 voxels: three heads, sartorius, femur."""
    ids = np.random.default_rng(3).choice([0, 7101, 7111, 7121, 7141, 6171], size=(2, 5, 7)).astype(np.int16)
    return write(tmp_path / "thigh.nii.gz", ids)


def table(folder, text, name="table.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_merged_renamed_and_dropped_against_a_loop(thigh, tmp_path):
    out, rows = tmp_path / "new" / "out.nii.gz", table(tmp_path, QUADRICEPS + "7141,\nfemur_left,femur_left\n")
    result = relabel_files(thigh, out, table=rows, names="musclemap_wholebody")
    before, after = nib.load(thigh), nib.load(out)
    old, new = np.asarray(before.dataobj), np.asarray(after.dataobj)
    for index in np.ndindex(*old.shape):
        assert new[index] == {7101: 1, 7111: 1, 7121: 1, 6171: 2}.get(int(old[index]), 0)
    assert new.dtype == np.uint8
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-6)
    one = result.files["thigh"]
    assert one.made_of == {"femur_left": ("femur_left",), "quadriceps": tuple(HEADS.values())}
    assert one.dropped == ("sartorius_left",) and one.absent == ()
    assert one.volumes_ml["quadriceps"] == pytest.approx(0.006 * np.isin(old, list(HEADS)).sum())  # 2 x 3 x 1 mm


def test_all_readers_find_the_new_names(thigh, tmp_path):
    out = tmp_path / "out.nii.gz"
    rows = table(tmp_path, QUADRICEPS + "sartorius_left,ignore\nfemur_left,femur_left\n")
    result = relabel_files(thigh, out, table=rows, names="musclemap_wholebody")
    expected = LabelMap({1: "quadriceps", 2: "femur_left"}, ignore=3)
    assert result.label_map == names_of(out) == expected
    assert read_label_table(tmp_path / "out.label") == expected


def test_the_old_names_in_the_header_are_gone(tmp_path):
    source = write(tmp_path / "a.nii.gz", np.full((2, 2, 2), 75, np.uint8), {75: "femur_left", 76: "femur_right"})
    relabel_files(source, tmp_path / "b.nii.gz", table=table(tmp_path, "from,to\nfemur_left,bone\n"))
    assert embedded_label_map(tmp_path / "b.nii.gz") is None
    assert names_of(tmp_path / "b.nii.gz").structures == ("bone",)


def test_rows_for_what_is_not_in_the_file_are_told(tmp_path):
    """The header lists two structures of TotalSegmentator's 117; a row may name a third, not a slip of the pen."""
    source = write(tmp_path / "a.nii.gz", np.full((2, 2, 2), 75, np.uint8), {75: "femur_left", 76: "femur_right"})
    rows = table(tmp_path, "from,to\n75,femur_left\nfemur_right,femur_right\nhip_left,hip_left\n")
    result = relabel_files(source, tmp_path / "b.nii.gz", table=rows)
    assert result.files["a"].absent == ("femur_right", "hip_left")
    assert result.label_map.names == {0: "background", 1: "femur_left"}  # what is in no file has no number
    rows = table(tmp_path, "from,to\nfemur_left,femur_left\nfemur_rihgt,femur_right\n")
    with pytest.raises(DataError, match=r"table.csv: names 'femur_rihgt'.*did you mean 'femur_right'"):
        relabel_files(source, tmp_path / "c.nii.gz", table=rows)


def test_nothing_vanishes_because_a_table_forgot_it(thigh, tmp_path):
    rows = table(tmp_path, QUADRICEPS)
    with pytest.raises(DataError, match=r"thigh.nii.gz: no row names femur_left, sartorius_left; .*--keep-others"):
        relabel_files(thigh, tmp_path / "out.nii.gz", table=rows, names="musclemap_wholebody")
    assert not list(tmp_path.glob("out*"))
    result = relabel_files(thigh, tmp_path / "out.nii.gz", table=rows, names="musclemap_wholebody", keep_others=True)
    assert result.label_map.names == {0: "background", 1: "quadriceps", 2: "femur_left", 3: "sartorius_left"}
    with pytest.raises(DataError, match="names 7112, which is no structure of these labels"):
        wrong = table(tmp_path, QUADRICEPS + "7112,other\n", "wrong.csv")
        relabel_files(thigh, tmp_path / "b.nii.gz", table=wrong, names="musclemap_thigh", keep_others=True)
    rows = table(tmp_path, "from,to\nvastus_lateralis_left,quadriceps\n")
    with pytest.raises(DataError, match=r"the ids \[6171, 7101, 7111, 7121, 7141\] have no name; .*--names"):
        relabel_files(thigh, tmp_path / "b.nii.gz", table=rows, names="musclemap_thigh", keep_others=True)
    with pytest.raises(DataError, match="the labels carry no names; .*--names"):
        relabel_files(thigh, tmp_path / "b.nii.gz", table=rows, keep_others=True)


def test_ids_alone_need_no_names(tmp_path):
    source = write(tmp_path / "a.nii.gz", np.array([[[0, 3, 9]]], np.uint16))
    rows = table(tmp_path, "from,to\n9,tibia\n3,fibula\n11,femur\n")
    result = relabel_files(source, tmp_path / "b.nii.gz", table=rows)
    assert read_label_image(tmp_path / "b.nii.gz").array.tolist() == [[[0, 2, 1]]]
    assert result.files["a"].made_of == {"fibula": ("id 3",), "tibia": ("id 9",)}
    assert result.files["a"].absent == ("id 11",)


def test_a_number_that_the_names_lack_may_be_a_row(tmp_path):
    source = write(tmp_path / "a.nii.gz", np.array([[[1, 2, 200]]], np.uint8), {1: "femur_left", 2: "tibia_left"})
    rows = table(tmp_path, "from,to\n200,patella_left\nfemur_left,femur_left\ntibia_left,\n")
    result = relabel_files(source, tmp_path / "b.nii.gz", table=rows)
    assert read_label_image(tmp_path / "b.nii.gz").array.tolist() == [[[2, 0, 1]]]
    assert result.files["a"].made_of["patella_left"] == ("id 200",)


def test_camel_case_sides_of_a_table_file(tmp_path):
    source = write(tmp_path / "a.nii.gz", np.array([[[1, 2]]], np.uint8))
    names = table(tmp_path, "id,name\n1,SoleusL\n2,SoleusRight\n", "names.csv")
    result = relabel_files(source, tmp_path / "b.nii.gz", table="standard", names=names)
    assert result.label_map.structures == ("soleus_left", "soleus_right")


def test_ids_of_another_table(thigh, tmp_path):
    like = tmp_path / "dataset.json"
    like.write_text(json.dumps({"labels": {"background": 0, "femur_left": 300, "thigh": 4, "tibia": 5}}))
    rows = table(tmp_path, "from,to\n" + "".join(f"{key},thigh\n" for key in (*HEADS, 7141)) + "6171,femur_left\n")
    result = relabel_files(thigh, tmp_path / "out.nii.gz", table=rows, names="musclemap_wholebody", like=like)
    new, old = read_label_image(tmp_path / "out.nii.gz").array, read_label_image(thigh).array
    np.testing.assert_array_equal(new, np.where(old == 0, 0, np.where(old == 6171, 300, 4)))
    assert result.label_map == read_label_table(like) and new.dtype == np.uint16
    rows = table(tmp_path, "from,to\n" + "".join(f"{key},thihg\n" for key in (*HEADS, 7141, 6171)))
    with pytest.raises(DataError, match=r"dataset.json: no id for thihg; did you mean 'thigh'"):
        relabel_files(thigh, tmp_path / "b.nii.gz", table=rows, names="musclemap_wholebody", like=like)


def test_a_folder_shares_one_table_and_a_damaged_file_stops_nothing(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write(source / "one.nii.gz", np.array([[[1, 3]]], np.uint8), {1: "femur_left", 3: "Vastus Lateralis L"})
    write(source / "two.nii.gz", np.array([[[2, 3]]], np.uint8), {2: "femur_left", 3: "tibia"})
    (source / "cut.nii.gz").write_bytes((source / "one.nii.gz").read_bytes()[:60])
    calls = []
    result = relabel_files(source, tmp_path / "out", table="standard", progress=lambda *call: calls.append(call))
    assert set(result.failures) == {"cut"} and "cut.nii.gz" in result.failures["cut"]
    assert result.label_map.structures == ("femur_left", "vastus_lateralis_left", "tibia")
    for case, ids in (("one", [[[1, 2]]]), ("two", [[[1, 3]]])):
        assert read_label_image(tmp_path / "out" / f"{case}.nii.gz").array.tolist() == ids
        assert names_of(tmp_path / "out" / f"{case}.nii.gz") == result.label_map
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "one.nii.gz", "two.nii.gz", "predictions.json", "labels.label",
    }  # fmt: skip
    assert [call[0] for call in calls] == sorted(call[0] for call in calls) and len(calls) == 5


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        write(tmp_path / "in" / f"{name}.nii.gz", np.ones((1, 1, 2), np.uint8), {1: "femur_left"})
    real = relabelling.write_volume

    def failing(path, volume):
        if path.name.startswith(bad):
            raise DataError(f"{path.name}: the disk is full")
        real(path, volume)

    monkeypatch.setattr(relabelling, "write_volume", failing)
    bad = "one"
    result = relabel_files(tmp_path / "in", tmp_path / "out", table="standard")
    assert result.failures == {"one": "one.nii.gz: the disk is full"} and set(result.files) == {"two"}
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"two.nii.gz"}
    bad = ""
    with pytest.raises(DataError, match="one.nii.gz: the disk is full"):
        relabel_files(tmp_path / "in", tmp_path / "none", table="standard")
    assert not (tmp_path / "none").exists()


def test_corrections_are_not_written_over(thigh, tmp_path):
    rows = table(tmp_path, "from,to\n" + "".join(f"{key},thigh\n" for key in (*HEADS, 7141, 6171)))
    for name in ("out.nii.gz", "out.json", "out.label"):
        (tmp_path / name).write_text("corrected")
        with pytest.raises(DataError, match=f"{name}: is there already, perhaps with corrections"):
            relabel_files(thigh, tmp_path / "out.nii.gz", table=rows)
        assert (tmp_path / name).read_text() == "corrected"
        (tmp_path / name).unlink()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    with pytest.raises(DataError, match="full: is there already"):
        relabel_files(thigh.parent, tmp_path / "full", table=rows)
    with pytest.raises(DataError, match="holds no label file"):
        relabel_files(tmp_path / "full", tmp_path / "out", table=rows)
    with pytest.raises(ValueError, match="choose one of these endings"):
        relabel_files(thigh, tmp_path / "out.png", table=rows)


def test_a_list_that_the_header_contradicts_is_refused(tmp_path):
    """88 is femur_left in TotalSegmentator 1 and iliopsoas_left from 2.0 on."""
    source = write(tmp_path / "a.nii.gz", np.full((2, 2, 2), 88, np.uint8), {88: "femur_left"})
    with pytest.raises(DataError, match="header calls 88 femur_left, the list iliopsoas_left; leave --names out"):
        relabel_files(source, tmp_path / "b.nii.gz", table="standard", names="totalsegmentator_total")


def test_the_unknown_stays_unknown():
    names = LabelMap({1: "femur"}, ignore=9)
    found = new_names([0, 1, 9], names, {"femur": "bone"})
    label_map = new_map(found.values())
    assert found == {1: "bone", 9: "ignore"} and label_map == LabelMap({1: "bone"}, ignore=2)
    assert renumbered(np.array([[[9, 1, 0]]]), found, label_map).tolist() == [[[2, 1, 0]]]
    with pytest.raises(ValueError, match="no id for ignore"):
        new_map(found.values(), like=LabelMap({1: "bone"}))
    with pytest.raises(ValueError, match="no structure is left"):
        new_map(["", "ignore"])


def test_one_structure_is_named_once():
    with pytest.raises(ValueError, match="names 'femur' twice, also as 4"):
        check_renaming({"femur": "a", 4: "b"}, [LabelMap({4: "femur"})])


BAD = {
    "name,to\na,b\n": "columns from and to",
    "from,to\n": "no row in it",
    "from,to\na,b\nA,c\n": "'A' is there twice",
    "from,to\na\n": "line 2 has not 2 cells",
    "from,to\na,b,c\n": "line 2 has not 2 cells",
    "from,to\na,background\n": "line 2 calls a structure 'background'; leave its 'to' empty .* ignore",
    "from,to\na,Clear Label\n": "calls a structure 'Clear Label'",
    "from,to\na,unlabelled\n": "calls a structure 'unlabelled'",
    "from,to\n0,b\n": "0 is background",
    "from,to\n,b\n": "'' in the column from is no name",
    "from,to\na,?!\n": "'[?]!' is no name",
    "from,to\n" + "a" * 200_000 + ",b\n": "no usable table of names",
    "from,to\n" + "a,b\n" * (1 << 20) + "x": "far too long",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: BAD[text])
def test_bad_tables_are_one_clear_line(text, tmp_path):
    with pytest.raises(DataError, match=BAD[text]):
        read_renaming(table(tmp_path, text))


def test_tables_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_renaming(tmp_path / "none.csv")
    with pytest.raises(DataError, match="neither a file nor a known list.*did you mean 'musclemap_thigh'"):
        tool_names("musclemap_thig")
    with pytest.raises(DataError, match="the lists are totalsegmentator_total"):
        tool_names("42")
    assert read_renaming(table(tmp_path, "\ufeffFrom, To , note\n 7 ,Femur L,x\n")) == {7: "femur_l"}


def test_sides_of_musclemap():
    """Whole body: the last digit is the side. Old models: left is odd, but in the abdomen, where right is."""
    digits = {1: "left", 2: "right", 0: None}
    for key, name in LISTS["musclemap_wholebody"].names.items():
        assert LabelMap.side(name) == digits[key % 10]
    for region in ("abdomen", "pelvis", "thigh", "leg"):
        for key, name in LISTS[f"musclemap_{region}"].names.items():
            odd = "right" if region == "abdomen" else "left"
            assert LabelMap.side(name) == (
                None if name == "sacrum" else odd if key % 2 else ({"left", "right"} - {odd}).pop()
            )


def test_lists_have_as_many_structures_as_their_makers_say():
    counts = {name.split("_", 1)[1]: len(one.names) for name, one in LISTS.items()}
    assert counts == {
        "total": 117, "total_mr": 50, "thigh_shoulder_muscles": 18, "appendicular_bones": 11, "wholebody": 99,
        "abdomen": 8, "pelvis": 13, "thigh": 28, "leg": 14,
    }  # fmt: skip
    samples = {
        "musclemap_wholebody": {7191: "biceps_femoris_short_head_left", 8152: "tibia_right", 6160: "sacrum"},
        "musclemap_leg": {10: "gastrocnemius_right", 13: "fibula_left"},
        "totalsegmentator_thigh_shoulder_muscles": {2: "quadriceps_femoris_right", 7: "sartorius_left", 9: "deltoid"},
        "totalsegmentator_appendicular_bones": {1: "patella", 11: "phalanges_hand"},
    }
    for name, sample in samples.items():
        assert {key: LISTS[name].names[key] for key in sample} == sample
        assert list_map(name).names.keys() - {0} == LISTS[name].names.keys()


@pytest.mark.parametrize("file", ["labels_model_output", "example_seg_mr"])
def test_lists_agree_with_what_totalsegmentator_wrote(file, data_dir):
    task = {"labels_model_output": "total", "example_seg_mr": "total_mr"}[file]
    written = embedded_label_map(data_dir / "pelvis_ct" / f"{file}.nii.gz")
    assert written == list_map(f"totalsegmentator_{task}")


def test_standard_names_differ_in_spelling_alone():
    for name in LOWER_LIMB_MUSCLES:
        for written in (f"{name}_right", f"Right {name.replace('_', ' ').title()}", f"{name.upper()}_R"):
            assert standard_name(written) == f"{name}_right"
    for other in ("quadriceps_femoris_left", "pelvic_girdle_right", "gastrocnemius_left", "rib_left_1"):
        assert standard_name(other) == other
    assert standard_name("vertebrae_L4") == plain_name("vertebrae_L4")


def test_real_labels(data_dir, tmp_path):
    """The back muscles and lumbar vertebrae of a CT; counted by nibabel and numpy."""
    source = data_dir / "pelvis_ct" / "labels_model_output.nii.gz"
    rows = table(tmp_path, "from,to\nautochthon_left,back\n87,back\nvertebrae_L1,spine\nvertebrae_L5,spine\n")
    result = relabel_files(source, tmp_path / "out.nii.gz", table=rows, keep_others=True)
    old, new = (np.asarray(nib.load(path).dataobj) for path in (source, tmp_path / "out.nii.gz"))
    np.testing.assert_array_equal(new == 1, (old == 86) | (old == 87))
    np.testing.assert_array_equal(new == 2, old == 31)
    np.testing.assert_array_equal(new == 0, old == 0)
    assert result.files["labels_model_output"].absent == ("vertebrae_l5",)


def test_the_command(thigh, tmp_path):
    rows = table(tmp_path, QUADRICEPS + "7141,\nfemur_left,femur_left\nfemur_right,femur_right\n")
    words = ["relabel", "-i", thigh, "-o", tmp_path / "out.nii.gz", "--table", rows, "--names", "musclemap_wholebody"]
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert "dropped: sartorius_left" in done.output and "not in this file: femur_right" in done.output
    listed = CliRunner().invoke(cli, ["relabel", "--list"])
    assert listed.exit_code == 0 and all(name in listed.output for name in LISTS)
    ready = CliRunner().invoke(cli, ["relabel", "--list", "musclemap_thigh"])
    same = {name: name for name in LISTS["musclemap_thigh"].names.values()}
    assert read_renaming(table(tmp_path, ready.output)) == same
    unknown = CliRunner().invoke(cli, ["relabel", "--list", "thigh"])
    assert unknown.exit_code == 2 and "no list is called 'thigh'" in unknown.output


def test_a_corrected_mask_of_musclemap_is_learnt_from_only_where_it_was_corrected(tmp_path):
    """Quadriceps of three heads and a sartorius on 14 slices; somebody corrects the six that are listed."""
    random = np.random.default_rng(5)
    ids = random.choice([0, 7101, 7111, 7121, 7141], size=(12, 10, 14)).astype(np.int16)
    mask = write(tmp_path / "mask.nii.gz", ids)
    scan = write(tmp_path / "scan.nii.gz", random.normal(size=ids.shape).astype(np.float32))
    rows, start = table(tmp_path, QUADRICEPS + "sartorius_left,sartorius\n"), tmp_path / "start.nii.gz"
    relabel_files(mask, start, table=rows, names="musclemap_wholebody")
    corrected, listed = nib.load(start), (1, 3, 5, 8, 10, 12)
    array = np.asarray(corrected.dataobj).copy()
    array[:4, :4, 5] = 2  # the correction
    nib.save(nib.Nifti1Image(array, corrected.affine, corrected.header), start)
    found = slices_dataset(SliceLabels(scan, start, axis=2, listed=listed), tmp_path / "slices", alone=False)
    assert "8 labelled slices are not listed, and count as unknown" in found.notes()
    dataset = read_dataset(tmp_path / "slices")
    assert dataset.label_map.structures == ("quadriceps", "sartorius")
    seen = np.full(array.shape, dataset.label_map.ignore)
    for subject in dataset.subjects:
        labels = subject.read_labels(dataset.label_map).array
        known = np.flatnonzero((labels != dataset.label_map.ignore).any(axis=(0, 1)))
        seen[..., known] = labels[..., known]
    np.testing.assert_array_equal(seen[..., listed], array[..., listed])
    assert (np.delete(seen, listed, axis=2) == dataset.label_map.ignore).all()
