"""The tree of src/depthjepa for README: each file and folder with the first sentence of its docstring, by floors.

    python tools/tree.py              print it
    python tools/tree.py --lines      with the lines of Python in each
    python tools/tree.py --write      put it into README.md

The floors are those of tests/test_floors.py.
"""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "depthjepa"
WITHOUT_CODE = {
    "recipes": "Recipes as YAML: configurations that state their price and score.",
    "studies": "Studies as YAML: arms, seeds and probes.",
}
BLOCK = re.compile(r"(?<=<!-- tree -->\n\n```text\n).*?(?=```\n)", re.DOTALL)
WIDTH = 118


def floors() -> list[tuple[str, ...]]:
    """The floors of the package, from the ground up."""
    for node in ast.parse((ROOT / "tests" / "test_floors.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            found: list[tuple[str, ...]] = list(ast.literal_eval(node.value))
            return found
    raise SystemExit("tests/test_floors.py has no FLOORS")


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, or of a folder's."""
    file = path / "__init__.py" if path.is_dir() else path
    docstring = ast.get_docstring(ast.parse(file.read_text())) if file.is_file() else None
    if not docstring:
        return WITHOUT_CODE.get(path.name, "")
    text = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[^.][^.]\.) (?=[A-Z`])", text)[0]


def lines_of(path: Path) -> int:
    """Lines of Python in a file, or in all files of a folder."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    return sum(len(file.read_text().splitlines()) for file in files)


def tree(*, lines: bool = False) -> str:
    """The tree as text, one path a line, folders in folders one step further in."""
    rows = []
    listed = {name for names in floors() for name in names}
    without = [(name,) for name in WITHOUT_CODE if name not in listed]
    for floor, names in enumerate([*floors(), *without]):
        for name in names:
            path = PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"
            if name.startswith("__") or not path.exists():
                continue
            rows.append((f"{floor:2}" if name in listed else "  ", 0, path))
            rows += [("  ", depth, folder) for depth, folder in folders_in(path)]
    text = [f"src/depthjepa/    {lines_of(PACKAGE)} lines" if lines else "src/depthjepa/"]
    for floor, depth, path in rows:
        label = f"{floor} {'  ' * depth}{path.name}{'/' * path.is_dir()}"
        count = f"{lines_of(path):6}  " if lines else ""
        text += textwrap.wrap(
            count + sentence(path), WIDTH, initial_indent=f"{label:<22} ", subsequent_indent=" " * 23
        ) or [label]
    return "\n".join(text) + "\n"


def folders_in(folder: Path, depth: int = 1) -> list[tuple[int, Path]]:
    """Folders with code in a folder, and theirs, each with how deep it lies."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").is_file():
            found += [(depth, path), *folders_in(path, depth + 1)]
    return found


def main() -> None:
    """Print the tree, or write it into README.md."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--lines", action="store_true", help="with the lines of Python in each")
    arguments.add_argument("--write", action="store_true", help="put it into README.md")
    asked = arguments.parse_args()
    if not asked.write:
        print(tree(lines=asked.lines), end="")
        return
    readme = ROOT / "README.md"
    readme.write_text(BLOCK.sub(lambda _: tree(), readme.read_text(), count=1))


if __name__ == "__main__":
    main()
