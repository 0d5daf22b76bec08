"""Closed curves as 3D Slicer's markups (`.mrk.json`), the form in which its users can edit them.

A file holds any number of curves; Slicer loads them all. Positions are written in LPS, as Slicer does itself, and the
file says so; read are LPS and RAS, whichever the file names (LPS without a word, as in Slicer). The world stays RAS+ in
mm outside this module. What Slicer does with such files, read in its source (`vtkMRMLMarkupsJsonStorageNode`,
`vtkSlicerMarkupsLogic`, Slicer 5) and heeded here:

* Curves that came from one file of several are saved one to a file, named after the curve, and the name is not written
  into it. So a curve without a name inside takes that of its file.
* Lengths in another unit than that of the scene are refused; a scene is in mm unless somebody changes that.
* The kind of curve is not kept: every curve is loaded as a spline through its points. Here points are joined by
  straight lines, which is Slicer's curve type "linear".
* A point may be undefined (being placed, or skipped); such points are left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json

SUFFIX = ".mrk.json"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_TO_RAS = {"LPS": np.array([-1.0, -1.0, 1.0]), "RAS": np.ones(3)}
_FARTHEST_MM = 1e5


def write_markups(path: str | Path, curves: Mapping[str, np.ndarray], *, colour: tuple[int, int, int]) -> None:
    """Writes closed curves into one file, whole or not at all.

    Args:
        path: a name that ends in `.mrk.json`, by which Slicer knows the file.
        curves: name -> points `(N, 3)` in RAS mm, the last of which joins the first.
        colour: red, green, blue, 0 to 255.

    Raises:
        ValueError: the name ends otherwise.
    """
    if not str(path).endswith(SUFFIX):
        raise ValueError(f"{path}: curves are written as {SUFFIX}; choose this ending")
    shade = [round(part / 255, 4) for part in colour]
    display = {"color": shade, "selectedColor": shade, "pointLabelsVisibility": False}
    markups = [
        {
            "type": "ClosedCurve",
            "name": name,
            "coordinateSystem": "LPS",
            "coordinateUnits": "mm",
            "controlPoints": [
                {"position": position, "positionStatus": "defined"} for position in (points * _TO_RAS["LPS"]).tolist()
            ],
            "display": display,
        }
        for name, points in curves.items()
    ]
    write_json(path, {"@schema": _SCHEMA, "markups": markups})


def read_markups(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the closed curves of a file as name -> points `(N, 3)` in RAS mm; a curve without points is there too.

    Raises:
        DataError: the file is missing or damaged, holds other markups than closed curves, lengths in another unit than
            mm, or one or two points, which enclose nothing.
    """
    path = Path(path)
    markups = read_json(path).get("markups")
    if not isinstance(markups, list) or not all(isinstance(markup, dict) for markup in markups):
        raise DataError(f"{path}: no list of markups; save the curves again in 3D Slicer as {SUFFIX}")
    stem = path.name.removesuffix(SUFFIX).removesuffix(".json")
    curves: dict[str, np.ndarray] = {}
    for number, markup in enumerate(markups, start=1):
        name = str(markup.get("name") or (stem if len(markups) == 1 else f"{stem}-{number}"))
        if name in curves:
            raise DataError(f"{path}: two curves are called {name!r}; give every curve a name of its own")
        curves[name] = _points(f"{path}: curve {name!r}", markup)
    return curves


def _points(what: str, markup: dict[str, Any]) -> np.ndarray:
    kind, system, unit = (markup.get(key) for key in ("type", "coordinateSystem", "coordinateUnits"))
    if kind != "ClosedCurve":
        raise DataError(f"{what} is of the type {kind!r}; only closed curves enclose something, draw it as one")
    if unit not in (None, "", "mm") and not (isinstance(unit, list) and unit[:2] == ["mm", "UCUM"]):
        raise DataError(f"{what} is in {unit!r}; mm are needed, set Slicer's unit of length and save again")
    if system is not None and (not isinstance(system, str) or system not in _TO_RAS):
        raise DataError(f"{what} is in the coordinate system {system!r}; LPS or RAS is needed, save it again")
    controls = markup.get("controlPoints")
    if not isinstance(controls, list) or not all(isinstance(point, dict) for point in controls):
        raise DataError(f"{what} has no list of control points; save it again")
    defined = [point.get("position") for point in controls if point.get("positionStatus", "defined") == "defined"]
    for position in defined:
        is_triple = isinstance(position, list) and len(position) == 3
        if not is_triple or not all(type(value) in (int, float) and abs(value) < _FARTHEST_MM for value in position):
            raise DataError(f"{what} has the position {position!r}; three numbers in mm are needed, save it again")
    if 0 < len(defined) < 3:
        raise DataError(
            f"{what} has {len(defined)} point(s), which enclose nothing; draw at least three, or delete all of them"
        )
    return np.array(defined, dtype=np.float64).reshape(-1, 3) * _TO_RAS[system or "LPS"]
