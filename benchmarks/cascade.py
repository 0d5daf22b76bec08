"""The cascade against one network for everything, muscle by muscle, as the table of `cascade.md`.

    python benchmarks/cascade.py CASCADE_EVALUATION SINGLE_EVALUATION

Both folders are what `tfmuscle evaluate` left of the same scans. Printed: mean volume of the reference, mean Dice of
both (over sides and subjects; a muscle that was not found counts 0), the paper's, and means over all, the small and the
large muscles. Small are those below the median volume.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

from tfmuscle.evaluation.muscles import METRICS_FILE, PUBLISHED, Measured, muscle_table, pooled_name, read_measured
from tfmuscle.files import read_json


def volumes_ml(evaluation: Path) -> dict[str, float]:
    """Returns muscle -> mean volume of the reference over sides and subjects, ml."""
    found: dict[str, list[float]] = {}
    for row in read_json(evaluation / METRICS_FILE)["rows"]:
        found.setdefault(pooled_name(row["structure"]), []).append(row["reference_ml"])
    return {name: mean(values) for name, values in found.items()}


def lines(cascade: Measured, single: Measured, volume: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns one row per muscle, the smallest first."""
    ours, theirs = ({row["structure"]: row for row in muscle_table(one)} for one in (cascade, single))
    return [
        {
            "muscle": name,
            "ml": volume[name],
            "cascade": ours[name]["dice_mean"],
            "single": theirs[name]["dice_mean"],
            "published": PUBLISHED[name].mean if name in PUBLISHED else float("nan"),
            "note": ours[name]["note"],
        }
        for name in sorted(volume, key=volume.__getitem__)
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cascade", type=Path)
    parser.add_argument("single", type=Path)
    chosen = parser.parse_args()
    cascade, single = read_measured(chosen.cascade), read_measured(chosen.single)
    rows = lines(cascade, single, volumes_ml(chosen.cascade))
    print("| muscle | ml | cascade | one network | published | |\n|---|---|---|---|---|---|")
    for row in rows:
        figures = " | ".join(f"{row[key]:.2f}" for key in ("cascade", "single", "published"))
        print(f"| {row['muscle'].replace('_', ' ')} | {row['ml']:.0f} | {figures} | {row['note']} |")
    border = median(row["ml"] for row in rows)
    parts = {
        f"all {len(rows)}": rows,
        f"below {border:.0f} ml": [row for row in rows if row["ml"] < border],
        f"from {border:.0f} ml on": [row for row in rows if row["ml"] >= border],
    }
    for name, part in parts.items():
        figures = " | ".join(f"**{mean(row[key] for row in part):.3f}**" for key in ("cascade", "single", "published"))
        print(f"| **{name}** | | {figures} | |")


if __name__ == "__main__":
    main()
