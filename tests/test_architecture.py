"""The floors of docs/architecture.md: a module imports only from smaller floors, at the top of its file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tfmuscle

PACKAGE = Path(tfmuscle.__file__).parent
CLI_FAMILIES = (
    "cascade",
    "comparing",
    "contours",
    "data",
    "exporting",
    "gui",
    "importing",
    "label_curve",
    "learning",
    "measuring",
    "muscles",
    "planning",
    "predicting",
    "preparing",
    "pretraining",
    "propagation",
    "segmentations",
    "serving",
    "slices",
    "surfaces",
    "sweeps",
    "ultrasound",
)
FLOORS = {
    "errors": 0, "labels": 0, "volume": 0, "quiet": 0, "label_lists": 0,
    "files": 1, "fields": 1, "tables": 1,
    "config": 2,
    "presets": 3, "io": 3, "phantom": 3, "metrics": 3, "layers": 3, "losses": 3,
    "subjects": 4, "folds": 4, "preprocessing": 4, "surfaces": 4, "compounding": 4,
    "labelled_slices": 4, "measuring": 4,
    "planning": 5, "label_sources": 5, "sampling": 5, "report": 5, "registration": 5,
    "postprocessing": 5, "contours": 5, "cascade": 5, "relabelling": 5,
    "disagreement": 5, "interpolation": 5, "uncertainty": 5, "propagation": 6,
    "records": 6, "augmentation": 6, "models": 6,
    "inference": 7,
    "training": 8,
    "evaluation": 9, "export": 9, "serving": 10,
    "workflows": 11,
    "gui": 12,
    "cli": 13,
}  # fmt: skip
LOCAL_IMPORTS_ALLOWED = {
    *(f"cli/{family}.py" for family in CLI_FAMILIES),
    "export/formats.py",
    "export/precision.py",
    "inference/conversion.py",
    "inference/engines.py",
    "inference/tensorrt.py",
    "models/__init__.py",
    "serving/grpc_wire.py",
    "workflows/beam.py",
}
TENSORFLOW_ROOMS = {"records", "augmentation", "training", "inference", "export", "serving"}
KERAS_ROOMS = TENSORFLOW_ROOMS | {"models", "layers", "losses"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def room(path: Path) -> str:
    """Name of the room a file is in: its first path part without extension."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, inside a function) of every import statement."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, id(node) in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "tfmuscle" else [node.module]
            )
            found += [(str(name), node.lineno, id(node) in inner) for name in names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_from_lower_floors(path):
    here = room(path)
    assert here in FLOORS, f"{here} has no floor: add it to FLOORS and to docs/architecture.md"
    for module, line, _ in imports(path):
        if module.startswith("tfmuscle."):
            other = module.split(".")[1]
            assert other == here or FLOORS[other] < FLOORS[here], f"{path.name}:{line} imports {other} upwards"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_stand_at_the_top(path):
    name = path.relative_to(PACKAGE).as_posix()
    inside = [line for _, line, inner in imports(path) if inner]
    assert not inside or name in LOCAL_IMPORTS_ALLOWED, f"{name}: imports inside functions at lines {inside}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_tensorflow_and_keras_stay_in_their_rooms(path):
    roots = {module.split(".")[0] for module, _, _ in imports(path)}
    assert "tensorflow" not in roots or room(path) in TENSORFLOW_ROOMS
    assert "keras" not in roots or room(path) in KERAS_ROOMS
    assert "segmentation_models" not in roots or path.name == "_segmentation_models.py"
    assert not roots & {"pickle", "tensorflow_addons"}


def test_help_does_not_load_tensorflow():
    code = "import sys, tfmuscle.cli; print(sorted({'tensorflow', 'keras', 'matplotlib', 'scipy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
