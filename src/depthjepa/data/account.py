"""What is read, in words: layout, counts, classes, and what was passed over. A run says it before its first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from depthjepa.data.config import DataConfig
from depthjepa.data.images import Split
from depthjepa.data.kept_folders import kept
from depthjepa.data.layouts.layout import layout_of, path_of
from depthjepa.data.listing import in_words
from depthjepa.data.order import Mixture, weighted_roots
from depthjepa.data.samples import Selective, Source, segment_classes

NAMED = 3  # classes that are named; the others are counted


def what_is_read(config: DataConfig, data: Mapping[Split, Source]) -> str:
    """One line about the training data of a configuration, and the validation data where it has any.

    As `data: photos is a class folder: train 24 images, val 8; 2 classes (blue, red); ignored: 2 .txt, 1 hidden`.
    """
    roots = [root for root, _ in weighted_roots(config.root)]
    with kept(*map(path_of, roots)):
        return _told(data, [layout_of(config, root).states for root in roots])


def _told(data: Mapping[Split, Source], layouts: Sequence[str]) -> str:
    source, held_out = data["train"], data.get("val")
    names = [each.name for each in (source.sources if isinstance(source, Mixture) else (source,))]
    what = ", ".join(f"{name} {states}" for name, states in zip(names, layouts, strict=True))
    counts = f"train {len(source)} images" + (f", val {len(held_out)}" if held_out is not None else ", no val")
    if held_out is not None and _same(source, held_out):
        counts += " (the same ones: nothing is held out)"
    words = [f"data: {what}: {counts}"]
    if source.classes:
        more = ", …" * (len(source.classes) > NAMED)
        plural = "es" * (len(source.classes) > 1)
        words.append(f"{len(source.classes)} class{plural} ({', '.join(source.classes[:NAMED])}{more})")
    if source.has_depth:
        words.append("with depth")
    if maps := segment_classes(source):
        words.append(f"with label maps of {len(maps)} classes")
    if ignored := _ignored(source, held_out):
        words.append(f"ignored: {in_words(ignored)}")
    return "; ".join(words)


def _same(source: Source, other: Source) -> bool:
    """Whether two splits are the same images, as far as their first and last names tell; rendered ones never are."""
    if source.keeps_samples or len(source) != len(other):
        return False
    return all(source.name_of(index) == other.name_of(index) for index in (0, len(source) - 1))


def _ignored(source: Source, held_out: Source | None) -> Mapping[str, int]:
    """What was passed over in both splits; where they are the same images, once."""
    found = Counter(_passed_over(source))
    if held_out is not None and not _same(source, held_out):
        found.update(_passed_over(held_out))
    return found


def _passed_over(source: Source) -> Mapping[str, int]:
    if isinstance(source, Mixture):
        return sum((Counter(_passed_over(each)) for each in source.sources), Counter())
    return source.ignored if isinstance(source, Selective) else {}
