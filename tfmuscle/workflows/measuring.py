"""Labels to numbers of muscles and a page to look at: `measure`.

    OUT/report.html                all of it on one page that prints
    OUT/structures.csv             one row a structure
    OUT/areas.csv                  area of every structure, slab by slab along the limb
    OUT/areas_by_limb_percent.csv  the same at 0 to 100 % of the limb, a column a structure
    OUT/asymmetry.csv              left against right
    OUT/flags.csv                  what may be wrong, and in which slices to look
    OUT/measures.json              all numbers again, with settings and checksums of what was read

Of a folder of label files every subject gets such a report, and the cohort a table:

    OUT/subjects/<subject>/        as above
    OUT/cohort.csv                 one row a subject and structure: the population for `--population`
    OUT/report.html, cohort.json   the cohort on a page, and who failed and why

What is finished is kept: a subject whose files and settings have not changed is not measured again. One that cannot be
measured is named on the page, in `cohort.json` and last of all on the command line; no row stands for it. Files are
named without their folders, for a report is sent around.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.files import provenance, read_json, write_json, write_text
from tfmuscle.io import case_files
from tfmuscle.measuring import population
from tfmuscle.measuring.flags import KINDS
from tfmuscle.measuring.population import FEATURES, FEWEST_PEOPLE
from tfmuscle.report import Section, html_page
from tfmuscle.report.measurements import cohort_figure
from tfmuscle.tables import rounded_csv
from tfmuscle.workflows.measuring_page import RULES, number, page
from tfmuscle.workflows.measuring_subject import (
    MADE_BY,
    RESULT,
    MeasureOptions,
    Progress,
    check_out,
    description,
    is_done,
    measure_one,
    write_tables,
)

COHORT = "cohort.json"
_SUBJECTS = "subjects"
_SUMMARISED = {"volume_ml": ("volume ml", 1), "length_mm": ("length mm", 0), "max_area_cm2": ("largest area cm²", 1)}
_SUMMARISED_FAT = {"ff_mean": ("FF % (mean of voxels)", 1), "ff_of_sums": ("FF % (ratio of sums)", 1)}


@dataclass(frozen=True)
class MeasureResult:
    """What `measure` did.

    Attributes:
        rows: one a subject and structure.
        flags: of all subjects, each with its `subject`.
        failures: subject -> reason.
        remarks: subject -> what the user should know.
        kept: subjects whose report was there already.
        out: folder of the report.
    """

    rows: tuple[dict[str, Any], ...]
    flags: tuple[dict[str, Any], ...]
    failures: Mapping[str, str]
    remarks: Mapping[str, Sequence[str]]
    kept: tuple[str, ...]
    out: Path


def measure(
    labels: str | Path, out: str | Path, options: MeasureOptions | None = None, *, progress: Progress | None = None
) -> MeasureResult:
    """Measures a label file, or every one of a folder, and writes tables and pages.

    Args:
        labels: label image, or a folder of them.
        out: folder of the report; one that this command wrote is gone on with.
        options: what is measured besides, and how.
        progress: called with (done, in all, name), of subjects in a folder, else of structures.

    Raises:
        ValueError: options that do not fit.
        DataError: a file of a single subject is missing, broken or on another grid; `out` holds something else; or a
            folder holds no label image.
    """
    labels, out, options = Path(labels), Path(out), options or MeasureOptions()
    if labels.is_dir():
        return _measure_folder(labels, out, options, progress)
    if (out / COHORT).exists():
        raise DataError(f"{out}: holds the report of a cohort; choose another folder for that of one subject")
    check_out(labels, out, options, RESULT)
    about, is_kept = _measure_subject(labels, out, options, progress)
    kept = (str(about["subject"]),) if is_kept else ()
    return _result({str(about["subject"]): about}, {}, kept, out)


def _measure_subject(
    labels: Path, out: Path, options: MeasureOptions, progress: Progress | None = None
) -> tuple[dict[str, Any], bool]:
    """Returns what the JSON of a subject holds, and whether it was there already."""
    if is_done(labels, out, options):
        return read_json(out / RESULT), True
    measures = measure_one(labels, options, progress=progress)
    about = description(measures, labels, options)
    files = {role: entry["file"] for role, entry in about["fingerprint"]["files"].items()}
    write_text(out / "report.html", page(measures, options, files))
    write_tables(measures, out, about)
    return read_json(out / RESULT), False


def _measure_folder(folder: Path, out: Path, options: MeasureOptions, progress: Progress | None) -> MeasureResult:
    if (out / RESULT).exists():
        raise DataError(f"{out}: holds the report of one subject; choose another folder for that of a cohort")
    check_out(folder, out, options, COHORT)
    files = case_files(folder)
    if not files:
        raise DataError(f"{folder}: holds no label image; NIfTI, NRRD or MHA files are needed")
    write_json(out / COHORT, {"made_by": MADE_BY, "finished": False})
    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    kept = []
    for number_done, (subject, path) in enumerate(files.items()):
        if progress is not None:
            progress(number_done, len(files), subject)
        try:
            own = _of_subject(options, subject)
            found[subject], is_kept = _measure_subject(path, out / _SUBJECTS / subject, own)
        except (DataError, ValueError, OSError, MemoryError) as error:
            failures[subject] = " ".join(str(error).split()) or type(error).__name__
            continue
        kept += [subject] * is_kept
    if progress is not None:
        progress(len(files), len(files), "")
    result = _result(found, failures, tuple(kept), out)
    _write_cohort(result, [folder, *(path.parent for path in options.files().values()), *options.files().values()])
    return result


def _of_subject(options: MeasureOptions, subject: str) -> MeasureOptions:
    """Returns the options with the subject's own files instead of folders and patterns."""

    def own(path: str | Path | None, channel: str) -> Path | None:
        return None if path is None else _located(Path(path), subject, channel)

    pair = options.dixon and tuple(_located(Path(p), subject, c) for p, c in zip(options.dixon, "01", strict=True))
    return replace(
        options,
        scan=own(options.scan, "0"),
        fat_fraction=own(options.fat_fraction, "0"),
        dixon=(pair[0], pair[1]) if pair else None,
        others=tuple(_located(Path(path), subject, "0") for path in options.others),
    )


def _located(path: Path, subject: str, channel: str) -> Path:
    """Finds a subject's file: by a pattern with {id}, or by its name in a folder, with or without nnU-Net's channel."""
    if "{id}" in str(path):
        return Path(str(path).replace("{id}", subject))
    files = case_files(path)
    for name in (subject, f"{subject}_000{channel}"):
        if name in files:
            return files[name]
    raise DataError(
        f"{path}: holds no image called {subject} or {subject}_000{channel}; check the names, or use {{id}}"
    )


def _result(found: Mapping[str, Any], failures: Mapping[str, str], kept: tuple[str, ...], out: Path) -> MeasureResult:
    rows = tuple(row | {"subject": subject} for subject, about in found.items() for row in about["structures"])
    flags = tuple({"subject": subject} | flag for subject, about in found.items() for flag in about["flags"])
    remarks = {subject: about["remarks"] for subject, about in found.items() if about["remarks"]}
    return MeasureResult(rows, flags, dict(failures), remarks, kept, out)


def _write_cohort(result: MeasureResult, folders: Sequence[Path]) -> None:
    unusual = unusual_rows(result.rows)
    failures = {key: _without_folders(reason, [*folders, result.out]) for key, reason in result.failures.items()}
    write_text(result.out / "cohort.csv", rounded_csv(result.rows))
    sections = [Section("Cohort", text=f"{len({row['subject'] for row in result.rows})} subjects measured.")]
    if failures:
        table = [{"subject": key, "why": reason} for key, reason in failures.items()]
        sections.append(Section(f"{len(failures)} subjects could not be measured", table=table, notice=True))
    if unusual:
        text = f"A robust z that 0.2 % of normal people have, from {FEWEST_PEOPLE} others on, sides together."
        sections.append(Section("Unlike the others", text=text, table=unusual))
    if result.rows:
        sections.append(
            Section("Structures", text="Mean ± sd (n - 1), cut ones left out.", table=_summary(result.rows))
        )
        pictures = {"Volumes; one dot a subject and side": cohort_figure(result.rows)}
        sections.append(Section("Volumes", pictures=pictures))
        text = f"Reports: {_SUBJECTS}/NAME/report.html. " + ("" if result.flags else "Nothing was found to doubt.")
        sections.append(Section("Flags", text=text, table=_flag_counts(result) if result.flags else ()))
    sections.append(Section("How it was measured", text=RULES))
    write_text(result.out / "report.html", html_page("tfmuscle: measures of a cohort", sections))
    about = {"made_by": MADE_BY, "finished": True, "failures": failures, "unusual": unusual, "made_with": provenance()}
    write_json(result.out / COHORT, about)


def _without_folders(text: str, folders: Sequence[Path]) -> str:
    for folder in sorted({str(one) for path in folders for one in (path, path.resolve())}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text


def unusual_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns what is far from the other subjects of the same cohort, the farthest first."""
    people = population(rows)
    found = [(row, one) for row in rows for one in people.unusual(row, subject=str(row["subject"]))]
    return [
        {
            "subject": row["subject"],
            "structure": one.structure,
            "what": FEATURES[one.feature],
            "value": f"{one.value:.4g}",
            "median of others": f"{one.median:.4g}",
            "z": f"{one.z:+.1f}",
        }
        for row, one in sorted(found, key=lambda pair: -abs(pair[1].z))
    ]


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for name in dict.fromkeys(row["structure"] for row in rows):
        own = [row for row in rows if row["structure"] == name]
        whole = [row for row in own if not row["cut"]]
        line = {"structure": name, "n": len(own), "cut": len(own) - len(whole)}
        for column, (title, digits) in _SUMMARISED.items():
            line[title] = _mean_sd([row[column] for row in whole], digits)
        for column, (title, digits) in _SUMMARISED_FAT.items():
            if any(column in row for row in rows):
                line[title] = _mean_sd([row[column] for row in own if row.get(column) is not None], digits)
        table.append(line)
    return table


def _mean_sd(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    spread = f" ± {number(statistics.stdev(values), digits)}" if len(values) > 1 else ""
    return number(statistics.fmean(values), digits) + spread


def _flag_counts(result: MeasureResult) -> list[dict[str, Any]]:
    table = []
    for subject in dict.fromkeys(row["subject"] for row in result.rows):
        own = [flag["kind"] for flag in result.flags if flag["subject"] == subject]
        table.append({"subject": subject} | {kind: own.count(kind) for kind in KINDS if kind in _kinds(result)})
    return table


def _kinds(result: MeasureResult) -> set[str]:
    return {str(flag["kind"]) for flag in result.flags}
