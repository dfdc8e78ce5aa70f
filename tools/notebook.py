"""docs/tutorials/first-run.ipynb: the first tutorial as a notebook, made of its page.

python tools/notebook.py              print it
python tools/notebook.py --write      write it
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "first-run.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def notebook() -> str:
    """The notebook as JSON: commands and Python are cells to run, all else is text; no outputs."""
    text, cells, end = PAGE.read_text(), list[dict[str, Any]](), 0
    for fence in FENCE.finditer(text):
        cells += [written(text[end : fence.start()]), run(fence[1], fence[2])]
        end = fence.end()
    cells.append(written(text[end:]))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def written(text: str) -> dict[str, Any]:
    """A cell of text."""
    return {"cell_type": "markdown", "metadata": {}, "source": text.strip().splitlines(keepends=True)}


def run(language: str, code: str) -> dict[str, Any]:
    """A cell to run; a command begins with `!`."""
    lines = code.strip().splitlines(keepends=True)
    source = [f"!{line}" for line in lines] if language == "bash" else lines
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}


def main() -> None:
    """Print the notebook, or write it."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true", help="write docs/tutorials/first-run.ipynb")
    if arguments.parse_args().write:
        NOTEBOOK.write_text(notebook())
    else:
        print(notebook(), end="")


if __name__ == "__main__":
    main()
