"""Prove that a change moves no loss: the golden runs of two commits on one machine, compared to the bit.

    python tools/compare_losses.py BEFORE [AFTER]

BEFORE and AFTER are commits; without AFTER the working tree is taken. Each recipe of tests/golden/ is trained at both,
in processes of their own on one thread and the same images, and every logged loss and gradient norm is compared as it
stands in `metrics.jsonl`, which holds all digits. The files tests/golden/*.txt are for other machines: instruction sets
differ in the seventh digit, so a test compares with those to 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from tiny_images import write_pairs  # noqa: E402  (the tests' images, known only after the line above)

COMPARED = ("step", "loss", "grad_norm")
CALL = "from depthjepa.cli import main; main()"  # at every commit


def losses(tree: Path, recipe: Path, root: Path, out: Path) -> list[dict[str, float]]:
    """Train a golden recipe with the package of a source tree; what each step logged of its losses."""
    if "root: PAIRS" not in recipe.read_text():
        root = Path("scenes")
    command = [sys.executable, "-c", CALL, "train", str(recipe), f"data.root={root}", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{recipe.stem} at {tree} failed:\n{done.stderr}")
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key.startswith(COMPARED)} for record in records]


def differences(before: list[dict[str, float]], after: list[dict[str, float]]) -> str:
    """The first place where two runs differ, in words; empty where every digit is the same."""
    for one, other in zip(before, after, strict=True):
        for key in one.keys() | other.keys():
            if one.get(key) != other.get(key):
                return f"step {one['step']}: {key} is {one.get(key)} before and {other.get(key)} after"
    return ""


def main() -> None:
    """Compare all golden runs; exit status 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?")
    asked = parser.parse_args()
    moved = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        trees = {"after": ROOT}
        for which, commit in (("before", asked.before), ("after", asked.after)):
            if commit is not None:
                trees[which] = place / which
                subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(trees[which]), commit], check=True)
        try:
            pairs = write_pairs(place / "pairs")
            for recipe in sorted((ROOT / "tests" / "golden").glob("*.yaml")):
                found = {w: losses(tree, recipe, pairs, place / f"{recipe.stem}-{w}") for w, tree in trees.items()}
                difference = differences(found["before"], found["after"])
                moved += bool(difference)
                print(f"{recipe.stem:18}{len(found['after']):3} steps: {difference or 'equal to the bit'}", flush=True)
        finally:
            for which, commit in (("before", asked.before), ("after", asked.after)):
                if commit is not None:
                    subprocess.run(["git", "worktree", "remove", "--force", str(trees[which])], check=True)
    sys.exit(bool(moved))


if __name__ == "__main__":
    main()
