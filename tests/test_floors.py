"""The package is a building: a file imports from lower floors, or from its own room without circles."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "depthjepa"

# Names of files and of folders (rooms) directly below the package, from the ground up.
FLOORS = (
    ("faults", "kinds", "settings", "cache_folder"),
    ("grid", "depth", "distributed", "runtime", "optim", "logbook", "progress", "stopping", "locks"),
    ("masks", "losses", "fitting", "columns", "runs", "loggers", "drawing", "shared_work"),
    ("data", "model"),
    ("formats",),
    ("guidance",),
    ("config",),
    ("method",),
    ("checkpoints",),
    ("backbones",),
    ("warm_start",),
    ("evaluation", "cost"),
    ("run",),
    ("training",),
    ("report",),
    ("study",),
    ("commands",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def imported(file: Path, package: Path) -> list[tuple[int, str]]:
    """Line and module (dotted, below the package) of every import of the package, also inside functions."""
    found = []
    path = ("depthjepa", *file.relative_to(package).parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [*path[: -node.level], *filter(None, [node.module])] if node.level else [str(node.module)]
            whole = [".".join([*start, alias.name]) for alias in node.names]
        else:
            continue
        found += [(node.lineno, module_of(name, package)) for name in whole if name.split(".")[0] == "depthjepa"]
    return found


def module_of(name: str, package: Path) -> str:
    """The longest beginning of a dotted name that is a file or a folder; what is neither is the package's own."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        path = package.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file() or path.is_dir():
            return ".".join(parts[:end])
    return "__init__"


def faults_of(package: Path) -> list[str]:
    """Everything that breaks the order of the floors, in words."""
    faults, rooms = [], {}
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package)
        own = path.parts[0].removesuffix(".py")
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if own not in FLOOR:
            faults.append(f"{path} has no floor: give {own!r} one in FLOORS of {Path(__file__).name}")
            continue
        for line, other in imported(file, package):
            top = other.split(".")[0]
            same_room = top == own or (len(path.parts) == 1 and (package / f"{top}.py").is_file())
            if top not in FLOOR or FLOOR[top] < FLOOR[own]:
                continue
            if FLOOR[top] > FLOOR[own] or not same_room:
                faults.append(
                    f"{path}:{line} (floor {FLOOR[own]}) imports {other} (floor {FLOOR[top]}): "
                    f"a file imports from lower floors or from its own room"
                )
            else:
                rooms.setdefault(module, set()).add(other)
    try:
        list(graphlib.TopologicalSorter(rooms).static_order())
    except graphlib.CycleError as circle:
        faults.append("import circle: " + " <- ".join(circle.args[1]))
    return faults


def test_every_import_goes_down():
    assert not faults_of(PACKAGE), "\n".join(faults_of(PACKAGE))


CLEAN = {
    "__init__.py": "from depthjepa.training import train",
    "faults.py": "import os",
    "masks.py": "from depthjepa import runtime",
    "runs.py": "from depthjepa.losses import latent_loss",
    "losses.py": "from depthjepa.faults import BadInput",
    "runtime.py": "",
    "data/__init__.py": "",
    "data/samples.py": "from depthjepa.masks import Masks",
    "data/loading.py": "from depthjepa.data.samples import Batch",
    "model/__init__.py": "",
    "model/vit.py": "import depthjepa.runtime",
    "training.py": "from depthjepa.data import loading",
}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (None, "", None),
        ("runtime.py", "from depthjepa.masks import Masks", "runtime.py:1 (floor 1) imports masks (floor 2)"),
        ("runtime.py", "def late():\n    import depthjepa.training", "runtime.py:2 (floor 1) imports training"),
        ("masks.py", "from . import training", "masks.py:1 (floor 2) imports training"),
        ("masks.py", "from depthjepa import __version__", "masks.py:1 (floor 2) imports __init__"),
        ("model/vit.py", "from depthjepa.data.samples import Batch", "model/vit.py:1 (floor 3) imports data.samples"),
        ("data/samples.py", "from depthjepa.data import loading", "import circle"),
        ("data/samples.py", "from . import loading", "import circle"),
        ("losses.py", "from depthjepa import runs", "import circle"),
        ("extra.py", "", "extra.py has no floor: give 'extra' one in FLOORS"),
        ("extra/deep.py", "", "extra/deep.py has no floor: give 'extra' one in FLOORS"),
    ],
)
def test_a_planted_fault_is_named(tmp_path, file, content, said):
    planted = CLEAN | ({file: content} if file else {})
    for name, text in planted.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = faults_of(tmp_path)
    assert len(found) == (said is not None), found
    if said:
        assert said in found[0]
