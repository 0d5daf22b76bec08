"""What belongs together in a lab's folder; images are never opened, so that empty files will do."""

import pytest

from tfmuscle.errors import DataError
from tfmuscle.workflows.pairing import Layout, matching, pair_up


def lab(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def plain(pairing, root):
    return {
        one.subject_id: (
            [scan.path.relative_to(root).as_posix() for scan in one.scans],
            [path.relative_to(root).as_posix() for path in one.labels],
        )
        for one in pairing.pairs
    }


def test_one_folder_a_subject(tmp_path):
    root = lab(
        tmp_path,
        "P1/T1.nii.gz", "P1/masks/femur_left.nii.gz", "P1/tibia.ply",
        "P2/ct.nii.gz", "P2/segmentations/hip_left.nii.gz", "P2/.hidden.nii.gz", "notes.txt",
    )  # fmt: skip
    found = pair_up(root, Layout())
    assert plain(found, root) == {
        "P1": (["P1/T1.nii.gz"], ["P1/tibia.ply", "P1/masks/femur_left.nii.gz"]),
        "P2": (["P2/ct.nii.gz"], ["P2/segmentations/hip_left.nii.gz"]),
    }
    assert found.left_out == ("notes.txt",) and not found.failures


def test_nothing_is_guessed(tmp_path):
    root = lab(tmp_path, "P1/T1.nii.gz", "P1/T2.nii.gz", "P2/femur_mask.nii.gz", "P3/T1.nii.gz")
    found = pair_up(root, Layout())
    assert list(plain(found, root)) == ["P3"]
    assert "2 possible scans (T1.nii.gz, T2.nii.gz)" in found.failures["P1"]
    assert "no scan, 1 mask" in found.failures["P2"]


@pytest.mark.parametrize("word", ["seg", "labels", "P1_mask", "roi", "T1-label"])
def test_words_that_call_an_image_a_mask(word, tmp_path):
    root = lab(tmp_path, "P1/T1.nii.gz", f"P1/{word}.nii.gz")
    assert plain(pair_up(root, Layout()), root) == {"P1": (["P1/T1.nii.gz"], [f"P1/{word}.nii.gz"])}


def test_a_word_inside_another_is_no_mask(tmp_path):
    root = lab(tmp_path, "P1/segmented_echo.nii.gz")  # "segmented" is not "seg"
    assert plain(pair_up(root, Layout()), root) == {"P1": (["P1/segmented_echo.nii.gz"], [])}


def test_patterns(tmp_path):
    root = lab(tmp_path, "scans/a_1.nii.gz", "scans/b.nii.gz", "m/a_1/femur.ply", "m/a_1/tibia.ply", "m/b/femur.ply")
    found = pair_up(root, Layout(scans=("scans/{id}.nii.gz",), masks=("m/{id}/*.ply",)))
    assert plain(found, root) == {
        "a_1": (["scans/a_1.nii.gz"], ["m/a_1/femur.ply", "m/a_1/tibia.ply"]),
        "b": (["scans/b.nii.gz"], ["m/b/femur.ply"]),
    }


def test_channels_and_series_in_patterns(tmp_path):
    root = lab(tmp_path, "a/w.nii.gz", "a/f.nii.gz", "b/w.nii.gz")
    found = pair_up(root, Layout(scans=("water={id}/w.nii.gz#*water*", "fat={id}/f.nii.gz")))
    assert found.channels == ("water", "fat")
    assert [scan.series for scan in found.pairs[0].scans] == ["*water*", None]
    assert "0 scans fit the pattern of 'fat'" in found.failures["b"]


def test_two_channels_may_be_series_of_one_folder(tmp_path):
    root = lab(tmp_path, "a/dixon/1.dcm")
    found = pair_up(root, Layout(scans=("water={id}/dixon#*water*", "fat={id}/dixon#*fat*")))
    assert [(scan.path.name, scan.series) for scan in found.pairs[0].scans] == [
        ("dixon", "*water*"),
        ("dixon", "*fat*"),
    ]


def test_the_longer_pattern_claims_a_file(tmp_path):
    root = lab(tmp_path, "a.nii.gz", "a_seg.nii.gz")
    found = pair_up(root, Layout(scans=("{id}.nii.gz",), masks=("{id}_seg.nii.gz",)))
    assert plain(found, root) == {"a": (["a.nii.gz"], ["a_seg.nii.gz"])}


def test_an_id_that_stands_twice_is_one_id(tmp_path):
    root = lab(tmp_path, "a/a_T1.nii.gz", "b/a_T1.nii.gz")
    assert list(plain(pair_up(root, Layout(scans=("{id}/{id}_T1.nii.gz",))), root)) == ["a"]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_tables(delimiter, tmp_path):
    root = lab(tmp_path / "lab", "x/T1.nii.gz", "x/femur.ply", "x/tibia.ply", "y/T1.nii.gz")
    masks = "x/*.ply" if delimiter == ";" else "x/femur.ply;x/tibia.ply"
    rows = [["subject", "scan", "masks"], ["s1", "x/T1.nii.gz", masks], ["s2", "y/T1.nii.gz", ""], ["s3", "z", ""]]
    (tmp_path / "table.csv").write_text("\n".join(delimiter.join(row) for row in rows))
    found = pair_up(root, Layout(table=tmp_path / "table.csv"))
    assert plain(found, root) == {
        "s1": (["x/T1.nii.gz"], ["x/femur.ply", "x/tibia.ply"]),
        "s2": (["y/T1.nii.gz"], []),
    }
    assert "nothing fits 'z'" in found.failures["s3"]


BAD_TABLES = {
    "subject,scan\na,x\na,y\n": "'a' is there twice",
    "subject,masks\na,x\n": "columns subject and scan",
    "subject,scan\n": "no rows",
    "subject,scan\n,x\n": "row without subject",
}


@pytest.mark.parametrize("text", BAD_TABLES)
def test_bad_tables(text, tmp_path):
    root = lab(tmp_path / "lab", "x/T1.nii.gz")
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=BAD_TABLES[text]):
        pair_up(root, Layout(table=tmp_path / "table.csv"))


@pytest.mark.parametrize("path", ["../T1.nii.gz", "/etc/passwd", "x/../../T1.nii.gz", "C:/T1.nii.gz"])
def test_a_table_cannot_leave_the_folder(path, tmp_path):
    root = lab(tmp_path / "lab", "x/T1.nii.gz")
    lab(tmp_path, "T1.nii.gz")
    (tmp_path / "table.csv").write_text(f"subject,scan\na,{path}\n")
    assert "leaves the folder" in pair_up(root, Layout(table=tmp_path / "table.csv")).failures["a"]


def test_missing_folders_and_tables(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        pair_up(tmp_path / "none", Layout())
    with pytest.raises(DataError, match="no such file"):
        pair_up(tmp_path, Layout(table=tmp_path / "none.csv"))
    with pytest.raises(DataError, match="no scan found"):
        pair_up(tmp_path, Layout())
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="nothing fits the masks' pattern 'x/{id}.nii.gz'"):
        pair_up(tmp_path, Layout(scans=("{id}.nii.gz",), masks=("x/{id}.nii.gz",)))
    with pytest.raises(DataError, match="leaves the folder"):
        pair_up(tmp_path, Layout(scans=("../{id}.nii.gz",)))


def test_layouts_that_contradict_themselves():
    with pytest.raises(ValueError, match="leave --scan and --masks out"):
        Layout(scans=("{id}",), table="t.csv")
    with pytest.raises(ValueError, match="add --scan"):
        Layout(masks=("{id}",))
    with pytest.raises(ValueError, match="write {id} there"):
        Layout(scans=("T1.nii.gz",))


def test_series_by_name_or_glob():
    names = ["5-t1", "7-dixon-water", "7-dixon-fat"]
    assert matching(names, "5-t1") == ["5-t1"] and matching(names, "*DIXON*") == names[1:] and not matching(names, "t1")


def test_links_and_earlier_imports(tmp_path):
    for name in ("a/scan.nii.gz", "dataset/imagesTr/a_0000.nii.gz", "dataset/import.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "gone").symlink_to("nowhere")
    found = pair_up(tmp_path, Layout())
    assert [one.subject_id for one in found.pairs] == ["a"]
    assert list(found.failures) == ["gone"] and "a link to nothing" in found.failures["gone"]
