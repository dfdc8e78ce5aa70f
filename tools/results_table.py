"""README's figures from the files in results/: the headline and the rows of its table.

    python tools/results_table.py            print them
    python tools/results_table.py --write    put them into README.md

Figures marked *audit* are not in results/: an independent audit computed them from the data and the kept figures.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


class Study:
    """The figures of a study that results/ keeps."""

    def __init__(self, name: str) -> None:
        self.content: dict[str, Any] = json.loads((RESULTS / name / "study.json").read_text())

    def seeds(self, arm: str, key: str) -> list[float]:
        """A figure of each run of an arm."""
        return [run["figures"][key] for run in self.content["runs"] if run["arm"] == arm]

    def mean(self, row: str, key: str) -> float:
        """The mean of an arm over its seeds, or of a baseline."""
        if row in self.content["arms"]:
            values = self.seeds(row, key)
            return sum(values) / len(values)
        [found] = [each for each in self.content["baselines"] if each["name"] == row and key in each["figures"]]
        return float(found["figures"][key]["mean"])

    def difference(self, measure: str, first: str, against: str, digits: int) -> str:
        """What was claimed of two arms: the mean difference and its 95 % interval."""
        [found] = [
            each
            for each in self.content["claimed"]
            if (each["measure"], each["first"], each["against"]) == (measure, first, against)
        ]
        mean, low, high = (f"{found[key]:.{digits}f}".replace("-", "−") for key in ("mean", "low", "high"))
        return f"{mean} (95 % interval {low} to {high}, {len(found['seeds'])} paired seeds)"


def probe(file: str, row: int | str, key: str) -> float:
    """A figure of one row of a probe's table, by name or by place."""
    rows = json.loads((RESULTS / file).read_text())["rows"]
    [found] = [each for each in rows if each["name"] == row] if isinstance(row, str) else [rows[row]]
    return float(found[key])


def signed(value: float, digits: int) -> str:
    """A number with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def headline() -> str:
    """The one result that README puts first."""
    study = Study("controls-scenes")
    key = "depth.r2_within"
    gain, over = study.difference(key, "G", "U", 3), study.difference(key, "G", "P", 3).split(" (")[0]
    reached, unguided = signed(study.mean("G", key), 3), signed(study.mean("U", key), 3)
    aligned, level = study.mean("G", "depth.aligned_absrel"), study.mean("mean map", "depth.aligned_absrel")
    return (
        f"**One result.** On rendered streets, one minute of training a run, guidance by exact depth raises R² within "
        f"images (how much of an image's own depth structure a linear readout finds) by {gain} over the unguided twin, "
        f"and by {over} over a twin that must give the picture in depth's place. It is a small effect at a low level: "
        f"{reached} against {unguided}, where a depth network that is asked about the same pixels reaches 0.73 (audit: "
        f"the package's own teacher `depthfm-tiny`, at 64 px), and after the best scale and shift the guided readout "
        f"is no better than the mean map (AbsRel {aligned:.3f} and {level:.3f})."
    )


def both(study: Study, row: str, keys: tuple[str, ...], digits: tuple[int, ...]) -> str:
    """Several figures of a row."""
    return ", ".join(signed(study.mean(row, key), places) for key, places in zip(keys, digits, strict=True))


def rows() -> list[tuple[str, str, str, str]]:
    """What was run, what was measured, the figure, and what it stands beside."""
    controls, pairs, small = Study("controls-scenes"), Study("guided-rgbd"), Study("small-data")
    depth, three = ("depth.r2_within", "depth.absrel", "depth.delta1"), (3, 3, 3)
    linear, nearest, attentive = "linear.val_accuracy", "knn.val_accuracy_20", "attentive.val_accuracy"
    found = [
        (
            "rendered streets, 1 minute a run, 8 seeds (`controls-scenes`)",
            "R² within images",
            f"guided {signed(controls.mean('G', depth[0]), 3)}",
            ", ".join(
                f"{name} {signed(controls.mean(row, depth[0]), 3)}"
                for name, row in {
                    "unguided": "U",
                    "the picture in depth's place": "P",
                    "a random network's output": "R",
                    "another image's depth": "S",
                    "random encoder": "random encoder",
                }.items()
            ),
        ),
        (
            "",
            "linear accuracy on labels [%]",
            f"guided less unguided {controls.difference(linear, 'G', 'U', 1)}: cannot be told",
            f"guided less the picture in depth's place {controls.difference(linear, 'G', 'P', 1)}",
        ),
    ]
    for name, file in (("three indoor scenes, later frames", "indoor160"), ("KITTI 2015, other places", "kitti2015")):
        tables = [f"rgbd-pixel/seed-{seed}/decode-{file}.json" for seed in (0, 1)]
        beside = ", ".join(signed(probe(tables[0], "mean map", key), 3) for key in ("r2_within", "absrel", "delta1"))
        lookup = "; each scene's own mean map 0.28, 0.197, 0.61 (audit: chosen by name, no pixel read)"
        found.append(
            (
                f"`rgbd-pixel`, decoded depth maps, 2 seeds: {name} (`rgbd-pixel`)",
                "R² within images, AbsRel, δ < 1.25",
                "; ".join(
                    ", ".join(signed(probe(table, 1, key), 3) for key in ("r2_within", "absrel", "delta1"))
                    for table in tables
                ),
                f"mean map {beside}" + (lookup if file == "indoor160" else ""),
            )
        )
    found += [
        (
            "the same indoor and KITTI pairs as one set, frozen features, 2 seeds (`guided-rgbd`)",
            "R² within images, AbsRel, δ < 1.25",
            f"guided {both(pairs, 'guided', depth, three)}",
            f"unguided {both(pairs, 'unguided', depth, three)}; four mean maps chosen by the scene's name 0.44, 0.21, "
            "0.63 (audit): **most of it can be had by naming the room**",
        ),
        (
            "Imagenette at 64 px from scratch, 8 minutes on one core, 2 seeds (`small-data`)",
            "accuracy [%]: linear, 20-NN, attentive",
            f"small-data default {both(small, 'default', (linear, nearest, attentive), (1, 1, 1))}",
            "; ".join(
                f"{name} {both(small, row, (linear, nearest, attentive), (1, 1, 1))}"
                for name, row in {
                    "random encoder": "random encoder",
                    "the released recipe": "reference",
                    "pixels alone": "pixel",
                    "supervised, the same minutes": "supervised",
                }.items()
            ),
        ),
        (
            "Imagenette at 128 px, ViT-S/8, released recipe, 100 epochs on an H100, 1 seed (`imagenette-plain-small8`)",
            "linear accuracy [%]",
            f"{probe('imagenette-plain-small8/linear.json', 2, 'val_accuracy'):.1f}",
            f"random encoder {probe('imagenette-plain-small8/linear.json', 'random encoder', 'val_accuracy'):.1f}",
        ),
    ]
    return found


def table() -> str:
    """The rows as Markdown."""
    head = ("run (folder in `results/`)", "measure", "trained", "beside it")
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows()))


def filled(readme: str) -> str:
    """README with the headline and the table of today's results."""
    for name, text in (("headline", headline()), ("results", table())):
        block = re.compile(rf"(?<=<!-- {name} -->\n\n).*?(?=\n\n)", re.DOTALL)
        readme = block.sub(lambda _, text=text: text, readme, count=1)
    return readme


def main() -> None:
    """Print them, or write them into README.md."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true", help="put them into README.md")
    readme = ROOT / "README.md"
    if arguments.parse_args().write:
        readme.write_text(filled(readme.read_text()))
    else:
        print(headline(), table(), sep="\n\n")


if __name__ == "__main__":
    main()
