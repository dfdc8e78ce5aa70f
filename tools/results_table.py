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
        # One row for each way of judging, of which some figures are alike: a mean map's.
        [found] = {
            each["figures"][key]["mean"]
            for each in self.content["baselines"]
            if each["name"] == row and key in each["figures"]
        }
        return float(found)

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
    study = Study("shortcut")
    key = "depth.r2_within"
    gain = study.difference(key, "ours", "U", 3)
    arms = {arm: signed(study.mean(arm, key), 3) for arm in ("ours", "U", "S", "teacher")}
    return (
        f"**One result.** One checkpoint, two more minutes on rendered streets, a frozen depth network as the teacher: "
        f"R² within images (how much of an image's own depth structure a linear readout finds in frozen features) is "
        f"{arms['ours']} with our guidance, {arms['U']} without: {gain} more. Another image's depth in its place gives "
        f"{arms['S']}, the teacher itself has {arms['teacher']} ([how](docs/experiments/shortcut.md); what else was "
        f"measured, also where it failed, stands [below](#what-has-been-measured))."
    )


def both(study: Study, row: str, keys: tuple[str, ...], digits: tuple[int, ...]) -> str:
    """Several figures of a row."""
    return ", ".join(signed(study.mean(row, key), places) for key, places in zip(keys, digits, strict=True))


def of_seeds(tables: list[dict[str, Any]], row: str, key: str, places: int) -> str:
    """A figure of one row for each seed."""
    return f"{row} {', '.join(signed(table[row][key], places) for table in tables)}"


def rows() -> list[tuple[str, str, str, str]]:
    """What was run, what was measured, the figure, and what it stands beside."""
    shortcut, small = Study("shortcut"), Study("small-data")
    within, linear = "depth.r2_within", "linear.val_accuracy"
    nearest, attentive = "knn.val_accuracy_20", "attentive.val_accuracy"
    words = {
        "U": "unguided",
        "Usg": "the head alone",
        "S": "another image's depth",
        "paper": "the paper's guidance",
        "random encoder": "random encoder",
    }
    streets, laser = Study("real-streets-from-checkpoint"), ("kitti.r2_within", "kitti.aligned_absrel")
    others = {
        "U": "unguided",
        "Usg": "the head alone",
        "P": "the picture in depth's place",
        "S": "another photograph's depth",
        "R": "a random network's targets",
        "random encoder": "random encoder",
        "mean map": "mean map",
    }
    found = [
        (
            "photographs of streets at 48 x 160 px, 5 minutes from one checkpoint, 6 seeds, judged by laser on other "
            "places (`real-streets-from-checkpoint`)",
            "R² within images, AbsRel aligned",
            f"guided by a driving network {both(streets, 'G', laser, (3, 3))}",
            "; ".join(f"{name} {both(streets, row, laser, (3, 3))}" for row, name in others.items()),
        )
    ]
    found += [
        (
            "rendered streets at 64 px, 2 minutes from one checkpoint, 6 seeds (`shortcut`)",
            label,
            f"guided {signed(shortcut.mean('ours', key), places)}",
            ", ".join(f"{name} {signed(shortcut.mean(row, key), places)}" for row, name in words.items()) + rest,
        )
        for label, key, places, rest in (
            ("R² within images", within, 3, f", the teacher {shortcut.mean('teacher', within):.3f}, mean map 0"),
            ("linear accuracy on labels [%]", linear, 1, ", chance 12.5"),
        )
    ]
    demos = [json.loads((RESULTS / f"demo/seed-{seed}.json").read_text())["rows"] for seed in (0, 1, 2)]
    found += [
        (
            "the demo: rendered streets at 48 px from scratch, 4 minutes for three runs, seeds 0, 1, 2 (`demo`)",
            label,
            of_seeds(demos, "guided", key, places),
            "; ".join(
                of_seeds(demos, name, key, places) for name in ("unguided", "supervised", "random encoder", *rest)
            ),
        )
        for label, key, places, rest in (
            ("R² within images", "r2_within", 3, ("teacher",)),
            ("linear accuracy on labels [%]", "val_accuracy", 1, ()),
        )
    ]
    decoding, tries = Study("decoding-scenes"), Study("decoding-scenes-tries")
    maps = tuple(f"decode.{key}" for key in ("r2_within", "absrel", "aligned_absrel"))
    found.append(
        (
            "depth maps decoded on streets never seen, 64 px, 3 minutes, 4 seeds (`decoding-scenes`, and its `-tries`)",
            "R² within images, AbsRel, AbsRel aligned",
            f"as fixed beforehand {both(decoding, 'ours-cnn', maps, (3, 3, 3))}; with SigLoss on whole views "
            f"{both(tries, 'whole-cnn', maps, (3, 3, 3))}, for ten minutes on more streets (2 seeds, `-long`) "
            f"{both(Study('decoding-scenes-long'), 'long', maps, (3, 3, 3))}",
            f"the paper's set-up, `cnn` {both(decoding, 'paper-cnn', maps, (3, 3, 3))}, `mlp` "
            f"{both(decoding, 'paper-mlp', maps, (3, 3, 3))}; mean map {both(decoding, 'mean map', maps, (0, 3, 3))}",
        )
    )
    for name, file in (("three indoor scenes, later frames", "indoor160"), ("KITTI 2015, other places", "kitti2015")):
        tables = [f"rgbd-pixel/seed-{seed}/decode-{file}.json" for seed in (0, 1)]
        beside = ", ".join(signed(probe(tables[0], "mean map", key), 3) for key in ("r2_within", "absrel", "delta1"))
        lookup = "; each scene's own mean map 0.28, 0.197, 0.61 (audit: chosen by name, no pixel read)"
        found.append(
            (
                f"`rgbd-pixel`, decoded depth maps, 2 seeds, in disparity as the probe's first version: {name} "
                f"(`rgbd-pixel`)",
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
