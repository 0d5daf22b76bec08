"""What becomes of every real DICOM file: read, and how it agrees with other converters, or refused, and why.

    python benchmarks/dicom.py DATA/dicom -o docs/dicom.md

writes the table between the two markers of the document; the rest of it is left alone. Judges: the NIfTI that dcm2niix
(`dcm_qa_*/Ref`) and dicom2nifti (`*_ground_truth.nii.gz`) made of the same files, compared in world space, because
converters flip axes; where there is none, SimpleITK's own reader (GDCM).
"""

import argparse
import contextlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.io.dicom import SeriesInfo, holds_dicom, is_zip_file, list_series, read_dicom
from tfmuscle.volume import Volume

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
PER_FILE = (  # folders of single files that have nothing to do with each other
    "dcm4che/dcm4che-test-data/src/main/resources",
    "dcm_qa_12bit/In",
    "dcm_qa_ts/In",
    "highdicom/data/test_files",
    "pydicom/charset_files",
    "pydicom/test_files",
    "rtstruct_dicompyler/example_data",
    "seg_dcmqi/data/segmentations",
)
DCM2NIIX = {
    "dcm_qa_enh/In/Siemens/XA10": "dcm_qa_enh/Ref/Siemens_REST1_w_SMS_PF7-8_6.nii",
    "dcm_qa_enh/In/Philips#magnitude": "dcm_qa_enh/Ref/Philips_WIP_B0_NS_801_e1.nii",
    "dcm_qa_enh/In/Philips#field-map": "dcm_qa_enh/Ref/Philips_WIP_B0_NS_801_e2_fieldmaphz.nii",
    "dcm_qa_mosaic/In/ep2d_Asc_2": "dcm_qa_mosaic/Ref/2_ep2d_Asc.nii",
    "dcm_qa_mosaic/In/cmrr_Int_8": "dcm_qa_mosaic/Ref/8_cmrr_Int.nii",
    "dcm_qa_12bit/In/12bitUnsigned.dcm": "dcm_qa_12bit/Ref/2.nii",
    "dcm_qa_12bit/In/12bitUnsigned_0x0F0F.dcm": "dcm_qa_12bit/Ref/3.nii",
    "dcm_qa_12bit/In/12bitSigned_0x0F0F.dcm": "dcm_qa_12bit/Ref/4.nii",
    **{f"dcm_qa_ts/In/{n}.dcm": f"dcm_qa_ts/Ref/{n}.nii" for n in range(1, 10)},
    **{f"dcm_qa_nih/In/20180918GE/mr_000{n}": f"dcm_qa_nih/Ref/DCM2NIIX_regression_test_{n}.nii" for n in range(4, 8)},
    "dcm_qa_nih/In/20180918Si/mr_0003": "dcm_qa_nih/Ref/EPI_PE=AP_3.nii",
    "dcm_qa_nih/In/20180918Si/mr_0004": "dcm_qa_nih/Ref/EPI_PE=PA_4.nii",
    "dcm_qa_nih/In/20180918Si/mr_0005": "dcm_qa_nih/Ref/EPI_PE=RL_5.nii",
    "dcm_qa_nih/In/20180918Si/mr_0006": "dcm_qa_nih/Ref/EPI_PE=LR_6.nii",
}
EXPLAINED = {
    "dcm_qa_enh/In/Philips#magnitude": "dcm2niix applies Philips' private scale; ours are the displayed values",
    "dcm_qa_enh/In/Philips#field-map": "dcm2niix rounds the slope: up to 0.006 of 500 Hz",
    "seg_dcmqi/data/paramaps": "directions of six decimals are not at right angles, SimpleITK straightens them",
}


@dataclass
class Row:
    """One line of the table: a part of a folder, or the frames of a time series together."""

    place: str
    info: SeriesInfo
    count: int = 1
    files: int = 0
    agreement: list[str] = field(default_factory=list)


def compare(volume: Volume, array: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """Returns the largest distance of corresponding voxel centres in mm, and the largest difference of values.

    The other image may have its axes flipped or exchanged: every voxel is looked up at its place in the world.
    """
    mine = volume.geometry.affine
    index = np.indices(volume.array.shape).reshape(3, -1).T
    other = index @ (np.linalg.inv(affine) @ mine)[:3, :3].T + (np.linalg.inv(affine) @ mine)[:3, 3]
    nearest = np.rint(other).astype(int)
    if sorted(array.shape) != sorted(volume.array.shape) or (nearest < 0).any() or (nearest >= array.shape).any():
        return np.inf, np.inf
    offset = np.abs((other - nearest) @ affine[:3, :3].T).max()
    return float(offset), float(np.abs(array[tuple(nearest.T)].astype(float) - volume.array.reshape(-1)).max())


def verdict(place: str, volume: Volume, array: np.ndarray, affine: np.ndarray, judge: str) -> str:
    """Says how a volume agrees with a judge's, in words that count as exact only if they are."""
    offset, difference = compare(volume, array, affine)
    scale = max(1.0, float(np.abs(volume.array).max()))
    where = f"{offset:.0e} mm"
    if 1e-3 < offset < 1e-2 and difference == 0 and place in EXPLAINED:
        return f"{judge}: explained: values exact, {EXPLAINED[place]} ({where})"
    if offset > 1e-3:
        return f"{judge}: DIFFERENT GEOMETRY ({where})"
    if difference == 0:
        return f"{judge}: exact ({where})"
    if difference <= 4 * np.finfo(np.float32).eps * scale:
        return f"{judge}: exact to float32 rounding ({where})"
    slope, intercept = line_between(volume, array, affine)
    scaled = volume.with_array(volume.array * slope + intercept)
    if compare(scaled, array, affine)[1] <= 1e-5 * scale * abs(slope):
        text = f"{judge}: explained: times {slope:.7g} plus {intercept:.1g} ({where})"
        return f"{text}; {EXPLAINED.get(place, 'NOT EXPLAINED')}"
    return f"{judge}: DIFFERENT VALUES (up to {difference:g})"


def line_between(volume: Volume, array: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """Returns slope and intercept that lead from our values to the judge's, by the two extremes of ours."""
    to_judge = np.linalg.inv(affine) @ volume.geometry.affine
    low, high = (
        np.unravel_index(index, volume.array.shape) for index in (volume.array.argmin(), volume.array.argmax())
    )
    theirs = [
        float(array[tuple(np.rint(to_judge[:3, :3] @ place + to_judge[:3, 3]).astype(int))]) for place in (low, high)
    ]
    ours = [float(volume.array[place]) for place in (low, high)]
    slope = (theirs[1] - theirs[0]) / (ours[1] - ours[0])
    return slope, theirs[0] - slope * ours[0]


def judged(root: Path, unit: Path, info: SeriesInfo) -> str:
    """Reads one part and compares it with the first judge there is."""
    volume = read_dicom(unit, series=info.name)
    place = unit.relative_to(root).as_posix()
    suffix = next(
        (
            key
            for key in DCM2NIIX
            if key == place or (key.startswith(f"{place}#") and info.name.endswith(key.split("#")[1]))
        ),
        None,
    )
    if suffix:
        image: Any = nib.load(root / DCM2NIIX[suffix])
        time = re.search(r"time(\d+)$", info.name)
        data = image.get_fdata()
        data = data[..., int(time[1]) - 1] if data.ndim == 4 and time else data
        return verdict(suffix, volume, data, image.affine, "dcm2niix")
    truth = unit.parent / f"{unit.name}_ground_truth.nii.gz"
    if truth.exists():
        image = nib.load(truth)
        return verdict(place, volume, image.get_fdata().reshape(image.shape[:3]), image.affine, "dicom2nifti")
    with contextlib.suppress(RuntimeError):
        array, affine = by_simpleitk(unit, info)
        return verdict(place, volume, array, affine, "SimpleITK")
    return "no judge"


def by_simpleitk(unit: Path, info: SeriesInfo) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file, or the only series of a folder with the right number of files, by SimpleITK."""
    if unit.is_file():
        names = [str(unit)]
    else:
        series = [
            sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(unit), uid)
            for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(unit))
        ]
        series = [names for names in series if len(names) == info.num_files]
        if len(series) != 1:
            raise RuntimeError("not one series of this many files")
        names = series[0]
    image = sitk.ReadImage(names if len(names) > 1 else names[0])
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    if not unit.is_file() or image.GetSize()[2] == 1:  # of one slice SimpleITK does not take the thickness
        affine[:3, 2] *= (info.spacing or (1, 1, 1))[2] / np.linalg.norm(affine[:3, 2])
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def units(root: Path) -> list[Path]:
    """Folders that hold DICOM files themselves, and single files where a folder's files are unrelated."""
    found: list[Path] = []
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        files = [
            path for path in sorted(folder.iterdir()) if path.is_file() and (holds_dicom(path) or is_zip_file(path))
        ]
        alone = folder.relative_to(root).as_posix() in PER_FILE
        zips = [path for path in files if is_zip_file(path)]
        directories = [path for path in files if path.name.startswith("DICOMDIR")]
        found += (
            files if alone else [*zips, *directories, *([folder] if len(files) > len(zips) + len(directories) else [])]
        )
    return found


def rows_of(root: Path, unit: Path) -> list[Row]:
    """Lists and reads one unit; the time points of one series become one row."""
    place = unit.relative_to(root).as_posix()
    rows: dict[tuple[object, ...], Row] = {}
    try:
        series = list_series(unit)
    except DataError as error:
        text = str(error).removeprefix(f"{unit}: ")
        return [Row(place, SeriesInfo("", None, "", "", "", None, None, "", 1, 0, text, "damaged"), files=1)]
    for info in series:
        base = re.sub(r"-time\d+$", "", info.name) if info.is_usable else ""
        key = (base, info.fitness, info.shape if info.is_usable else None)
        row = rows.setdefault(key, Row(place, info, count=0))
        row.count += 1
        row.files += info.num_files
        if info.is_usable:
            try:
                row.agreement.append(judged(root, unit, info))
            except DataError as error:
                row.agreement.append(f"REFUSED ON READING: {str(error).removeprefix(str(unit)).strip(': ')}")
    return list(rows.values())


def line(row: Row) -> str:
    info = row.info
    what = "times" if info.is_usable else "parts"
    times = f" and {row.count - 1} more {what}" if row.count > 1 else ""
    size = "×".join(map(str, info.shape)) if info.shape else ""
    found = Counter(re.sub(r" \(\S+ mm\)", "", text) for text in row.agreement)
    worst = max(
        (float(match[1]) for text in row.agreement if (match := re.search(r"\((\S+) mm\)", text))), default=None
    )
    agreement = "; ".join(found) + (f", {worst:.0e} mm" if worst is not None else "")
    outcome = "read" if info.is_usable else "refused: " + info.fitness
    notes = "".join(f" ({note})" for note in info.notes)
    cells = (row.place, (info.name or "—") + times, info.modality, size, row.files, outcome + notes, agreement or "—")
    return "| " + " | ".join(str(cell).replace("|", "/").replace("<", "(") for cell in cells) + " |"


def outcome_of(row: Row) -> str:
    """Returns one word group for a row, to be counted."""
    text = " ".join(row.agreement)
    if not row.info.is_usable:
        return f"refused: {row.info.kind}"
    if "DIFFERENT" in text or "REFUSED" in text:
        return "read, DIFFERENT or refused on reading"
    if "explained" in text:
        return "read, difference explained"
    if "no judge" in text:
        return "read, no judge"
    return "read, exact" + (" by SimpleITK" if "SimpleITK" in text else "")


def summary(root: Path, rows: list[Row]) -> list[str]:
    """Counts outcomes; what lies in a zip, or is named by a DICOMDIR, is not counted again."""
    every = [path for path in root.rglob("*") if path.is_file()]
    dicom = [path for path in every if holds_dicom(path) and not is_zip_file(path)]
    directories = [path for path in dicom if path.name.startswith("DICOMDIR")]
    parts: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for row in rows:
        if "DICOMDIR" not in row.place and not row.place.endswith(".zip"):
            parts[outcome_of(row)] += row.count
            files[outcome_of(row)] += row.files
    return [
        f"{len(every)} files: {len(dicom)} are DICOM or called so, {len(directories)} of them DICOMDIR; the others are "
        f"NIfTI, NRRD, pictures, texts and a zip. {len(dicom) - len(directories)} files are to be accounted for, and "
        f"{sum(files.values())} are (a file that holds two stacks counts with both):",
        "",
        "| outcome | volumes or parts | files |",
        "|---|---|---|",
        *(f"| {name} | {parts[name]} | {files[name]} |" for name in sorted(parts)),
    ]


def main() -> None:
    """Reads everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of DICOM sets")
    parser.add_argument("-o", "--output", type=Path, required=True, help="document with the two markers")
    arguments = parser.parse_args()
    root = arguments.data.resolve()
    rows = [row for unit in units(root) for row in rows_of(root, unit)]
    table = ["| where | part | modality | shape | files | outcome | agreement |", "|---|---|---|---|---|---|---|"]
    text = "\n".join([*summary(root, rows), "", *table, *map(line, rows)])
    document = arguments.output.read_text(encoding="utf-8") if arguments.output.exists() else f"{BEGIN}\n{END}\n"
    before, after = document.split(BEGIN)[0], document.split(END)[1]
    with atomic_path(arguments.output) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
