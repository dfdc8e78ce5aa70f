"""Classifiers that are trained by gradient steps on cached features: the I-JEPA protocol's sweep, and the paper's head.

`sweep` (Assran et al. 2023, appendix A.2): tokens are mean-pooled, those of the last layer and of the last four side by
side; a linear classifier behind a batch norm without scale is trained for every setting of layers, rate and weight
decay, the rate divided by ten three times. All settings learn in one pass, from the same batches. Where we differ:
AdamW on batches of 256 in place of LARS on 16,384, the batch norm has the training set's statistics, and the best
setting is chosen on a fifth of the training images (not on the images that are reported) and trained again on all.

`mlp` is the source paper's lightweight head (section 5.2, figure 4): two layers on the pooled last layer, its accuracy
after each of 100 epochs. The paper shows that on training data alone; ours has the validation images beside it. Nothing
is said there of what the head reads: features as they come, or standardised as the I-JEPA protocol's batch norm does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from depthjepa import runtime
from depthjepa.evaluation.classification import Standardiser, classes_of, held_out, parts
from depthjepa.evaluation.features import Pooled
from depthjepa.faults import BadInput
from depthjepa.fitting import update, walks
from depthjepa.progress import track

Layers = Literal["last", "last four"]
RATES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
WEIGHT_DECAYS = (5e-4, 0.0)
LAYERS: tuple[Layers, ...] = ("last", "last four")
TOGETHER = 4  # layers that are read side by side, at most
BATCH = 256
DROPS = 0.3  # of the epochs, after which the rate falls to a tenth: 15 of 50 in the protocol
FEWEST = 5  # training images
HIDDEN = 512
HEAD_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class Setting:
    """One linear classifier of the sweep."""

    layers: Layers
    lr: float
    weight_decay: float


SETTINGS = tuple(Setting(*each) for each in product(LAYERS, RATES, WEIGHT_DECAYS))


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Accuracies in [0, 1] of the chosen setting, and each setting's accuracy on the images held out to choose it."""

    train_accuracy: float
    val_accuracy: float
    chosen: Setting
    held_out: dict[Setting, float]


def sweep(
    train: Pooled, test: Pooled, width: int, *, epochs: int = 100, seed: int = 0, settings: Sequence[Setting] = SETTINGS
) -> SweepResult:
    """Train a linear classifier for every setting at once, and the best of them again on all training images.

    `width` is that of one layer: features hold up to four layers side by side, the last one at their end.
    """
    classes = classes_of(train, test)
    _refuse_few(train)
    aside = held_out(train.labels, seed)
    fitted = _fit_linear(train.values[~aside], train.labels[~aside], settings, width, classes, epochs, seed)
    scores = [float((guess == train.labels[aside]).double().mean()) for guess in fitted(train.values[aside])]
    chosen = settings[max(range(len(settings)), key=scores.__getitem__)]
    again = _fit_linear(train.values, train.labels, [chosen], width, classes, epochs, seed)
    (on_test,), (on_train,) = again(test.values), again(train.values)
    return SweepResult(
        train_accuracy=float((on_train == train.labels).double().mean()),
        val_accuracy=float((on_test == test.labels).double().mean()),
        chosen=chosen,
        held_out=dict(zip(settings, scores, strict=True)),
    )


@torch.no_grad()
def _fit_linear(
    values: Float[Tensor, "images d"],
    labels: Int64[Tensor, " images"],
    settings: Sequence[Setting],
    width: int,
    classes: int,
    epochs: int,
    seed: int,
) -> Callable[[Float[Tensor, "images d"]], list[Int64[Tensor, " images"]]]:
    """Train the classifiers of all settings where the values are; returns what gives each one's classes of images."""
    device = values.device
    standard, labels = Standardiser.of(values), labels.to(device)
    heads = [nn.Linear(width if each.layers == "last" else values.shape[1], classes).to(device) for each in settings]
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    groups = [
        {"params": list(head.parameters()), "weight_decay": each.weight_decay}
        for head, each in zip(heads, settings, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)  # of two dozen small groups, each one's kernel counts
    features = standard(values)
    for epoch, batch in _batches(len(values), epochs, seed, device):
        share = 0.1 ** int(epoch / epochs / DROPS)
        read, wanted = features[batch], labels[batch]
        losses = (F.cross_entropy(head(read[:, -head.in_features :]), wanted) for head in heads)
        update(optimizer, losses, [share * each.lr for each in settings])

    def predict(images: Float[Tensor, "images d"]) -> list[Int64[Tensor, " images"]]:
        found: list[list[Tensor]] = [[] for _ in heads]
        for read in map(standard, parts(images, classes, device)):
            for head, guesses in zip(heads, found, strict=True):
                guesses.append(head(read[:, -head.in_features :]).argmax(-1))
        return [torch.cat(guesses).cpu() for guesses in found]

    return predict


@dataclass(frozen=True, slots=True)
class HeadResult:
    """Accuracies in [0, 1] after each epoch."""

    train_accuracy: Float[np.ndarray, " epochs"]
    val_accuracy: Float[np.ndarray, " epochs"]


def mlp(
    train: Pooled, test: Pooled, width: int, *, epochs: int = 100, seed: int = 0, standardised: bool = True
) -> HeadResult:
    """Train the paper's head on the last layer of pooled features (the last `width` channels); see the module.

    The features are standardised by the training images, or read as they are: a head of one rate then learns little
    of features that hardly differ from image to image, however much these differences would tell.
    """
    classes = classes_of(train, test)
    _refuse_few(train)
    device = train.values.device
    labels = train.labels.to(device)
    features, unseen = (each.values[:, -width:].to(device) for each in (train, test))
    if standardised:
        features, unseen = map(Standardiser.of(features), (features, unseen))
    with runtime.seeded(seed, "mlp probe"):
        head = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_RATE)
    curves: list[tuple[float, float]] = []
    steps = -(-len(features) // BATCH)
    for number, (_, batch) in enumerate(_batches(len(features), epochs, seed, device), 1):
        update(optimizer, [F.cross_entropy(head(features[batch]), labels[batch])], HEAD_RATE)
        if number % steps == 0:
            with torch.no_grad():
                on_train, on_test = (
                    torch.cat([head(part).argmax(1) for part in parts(each, max(classes, HIDDEN), device)]).cpu()
                    for each in (features, unseen)
                )
            accuracies = (on_train == train.labels).double().mean(), (on_test == test.labels).double().mean()
            curves.append((float(accuracies[0]), float(accuracies[1])))
    train_curve, val_curve = np.array(curves).T
    return HeadResult(train_curve, val_curve)


def _batches(images: int, epochs: int, seed: int, device: torch.device) -> Iterator[tuple[int, Int64[Tensor, " b"]]]:
    """The epoch and the images of every step: each once an epoch."""
    orders = walks(torch.arange(images), epochs, seed=seed, stream="trained probe")
    for epoch, order in enumerate(track(orders, "epochs of a trained probe", epochs)):
        for batch in torch.split(order.to(device), BATCH):
            yield epoch, batch


def _refuse_few(train: Pooled) -> None:
    if len(train.labels) < FEWEST:
        raise BadInput(f"a probe that is trained needs at least {FEWEST} training images, not {len(train.labels)}")
