"""Classification on frozen, pooled features: k nearest neighbours, and a linear classifier.

Nearest neighbours: the weighted vote of Wu et al. 2018 and DINO (Caron et al. 2021, appendix), k = 10, 20, 100 and
temperature 0.07; features are centred by the training mean before the cosine, since an encoder's tokens share
a large common component that would leave all cosines near 1.
Linear: instead of the paper's sweep of learning rates and weight decays with LARS over 50 epochs (appendix
A.2), the convex problem is solved: multinomial logistic regression on standardised features, whose
strength is chosen on a held-out part of the training images. No validation image takes part in any choice.

Both run in float32 where the training features are, and give their classes on the CPU. Memory: with the training
features themselves up to three times their bytes (1.28 million of width 384 have 2 GB), and a few times 64 MiB for the
similarities, votes or class scores that are held at a time, whatever the numbers of images and classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from depthjepa.data.layouts.layout import with_labels
from depthjepa.evaluation.features import Pooled
from depthjepa.faults import BadInput
from depthjepa.progress import track
from depthjepa.runtime import permutation

WEIGHT_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
SIMILARITIES = 2**24  # of a chunk of nearest-neighbour search, and votes: 64 MiB
SCORES = 2**24  # of classes, of the images that are classified at a time: 64 MiB
ROUNDING = 1e-6  # below this share of a channel's magnitude, float32 features hold only rounding


@dataclass(frozen=True, slots=True)
class ClassifierResult:
    """Accuracies in [0, 1], the chosen weight decay, and the classes predicted for the test images."""

    train_accuracy: float
    val_accuracy: float
    weight_decay: float
    predictions: Int64[Tensor, " images"]


def chance(train: Pooled, test: Pooled) -> float:
    """Accuracy in [0, 1] of calling every test image by the most frequent training class."""
    classes_of(train, test)
    return float((test.labels == train.labels.bincount().argmax()).double().mean())


def knn(train: Pooled, test: Pooled, k: int = 20, temperature: float = 0.07) -> float:
    """Accuracy in [0, 1] of the nearest-neighbour vote; see `knn_predictions`."""
    return knn_accuracies(train, test, (k,), temperature)[k]


def knn_accuracies(
    train: Pooled, test: Pooled, neighbours: Sequence[int], temperature: float = 0.07
) -> dict[int, float]:
    """Accuracies in [0, 1] of the votes of several numbers of neighbours; the search is done once."""
    predictions = knn_predictions(train, test, neighbours, temperature)
    return {k: float((predicted == test.labels).double().mean()) for k, predicted in predictions.items()}


def knn_predictions(
    train: Pooled, test: Pooled, neighbours: Sequence[int], temperature: float = 0.07
) -> dict[int, Int64[Tensor, " images"]]:
    """Class of each test image by the vote of its k nearest training images, weighted exp(cosine / T), for every k.

    Both sets are centred by the training mean and scaled to length 1. With fewer than k training images
    all of them vote. The test set is walked in chunks, so memory is bounded.
    """
    classes, device = classes_of(train, test), train.values.device
    labels = train.labels.to(device)
    predictions: dict[int, list[Tensor]] = {k: [] for k in neighbours}
    for cosine, nearest in nearest_images(train, test, max(neighbours), classes):
        weights, voted = ((cosine - 1) / temperature).exp(), labels[nearest]
        votes = torch.zeros(len(nearest), classes, device=device)
        most = nearest.shape[1]
        for place in range(most):  # one by one: a GPU adds what it is given at once in any order
            votes.scatter_add_(1, voted[:, place, None], weights[:, place, None])
            for k, predicted in predictions.items():
                if min(k, most) == place + 1:
                    predicted.append(votes.argmax(1))
    return {k: torch.cat(predicted).cpu() for k, predicted in predictions.items()}


def nearest_images(
    train: Pooled, test: Pooled, most: int, votes: int = 1
) -> Iterator[tuple[Float[Tensor, "chunk k"], Int64[Tensor, "chunk k"]]]:
    """Cosines and places of the `most` nearest training images, the nearest first; the test set comes in chunks.

    A chunk has at most `SIMILARITIES` similarities, and as many `votes` where each test image has so many of them.
    """
    centre = train.values.mean(0)
    anchors = F.normalize(train.values - centre, dim=1)
    for chunk in torch.split(test.values, max(1, SIMILARITIES // max(len(anchors), votes))):
        similarities = F.normalize(chunk.to(anchors.device) - centre, dim=1) @ anchors.T
        cosine, nearest = similarities.topk(min(most, len(anchors)))
        yield cosine, nearest


def linear(train: Pooled, test: Pooled, seed: int = 0) -> ClassifierResult:
    """Fit a linear classifier on the training features and score it on both sets.

    The features are standardised per channel (a BatchNorm without scale, frozen on the training set). The
    weight decay with the lowest cross-entropy on a held-out fifth of the training images (the same share
    of every class) is taken, and the classifier is refitted on all of them.
    """
    classes, device = classes_of(train, test), train.values.device
    if len(train.labels) < 5:
        raise BadInput(f"a linear probe needs at least 5 training images, and there are {len(train.labels)}")
    held = held_out(train.labels, seed).to(device)
    every_label = train.labels.to(device)
    features, labels = train.values[~held], every_label[~held]
    standard = Standardiser.of(features)
    features, unseen, unseen_labels = standard(features), standard(train.values[held]), every_label[held]
    weight = torch.zeros(classes, features.shape[1] + 1, device=device)
    best, weight_decay = torch.inf, WEIGHT_DECAYS[0]
    for strength in track(WEIGHT_DECAYS, "strengths of the linear probe", len(WEIGHT_DECAYS)):
        weight = fit_logistic(features, labels, strength, weight)
        loss = float(sum(cross_entropies(weight, unseen, unseen_labels)))
        if loss > best:  # the loss is U-shaped in the strength: weaker ones only overfit more, and take longest
            break
        best, weight_decay = loss, strength
    standard = Standardiser.of(train.values)
    features = standard(train.values)
    weight = fit_logistic(features, every_label, weight_decay, torch.zeros_like(weight))
    fitted = torch.cat([logits(weight, part).argmax(1) for part in parts(features, classes, device)]).cpu()
    predictions = torch.cat(
        [logits(weight, standard(part)).argmax(1) for part in parts(test.values, classes, device)]
    ).cpu()
    return ClassifierResult(
        train_accuracy=float((fitted == train.labels).double().mean()),
        val_accuracy=float((predictions == test.labels).double().mean()),
        weight_decay=weight_decay,
        predictions=predictions,
    )


@dataclass(frozen=True, slots=True)
class Standardiser:
    """Subtract a training set's mean and divide by its deviation, per channel; dead channels become 0."""

    mean: Float[Tensor, " d"]
    inverse_deviation: Float[Tensor, " d"]

    @classmethod
    def of(cls, features: Float[Tensor, "images d"]) -> Standardiser:
        inverse = inverse_deviation(features.std(0, correction=0), features.square().mean(0).sqrt())
        return cls(features.mean(0), inverse)

    def __call__(self, features: Float[Tensor, "*images d"]) -> Float[Tensor, "*images d"]:
        return (features - self.mean).mul_(self.inverse_deviation)  # in place: a set of features may have gigabytes


def inverse_deviation(deviation: Float[Tensor, " d"], magnitude: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """1 / deviation of every channel; 0 where it is but rounding of the channel's root mean square `magnitude`."""
    alive = deviation > ROUNDING * magnitude
    return torch.where(alive, 1 / torch.where(alive, deviation, 1), 0)


def held_out(labels: Int64[Tensor, " images"], seed: int) -> Bool[Tensor, " images"]:
    """Mark a fifth of the images, drawn by the seed, with the same share of every class."""
    order = torch.from_numpy(permutation(len(labels), seed=seed, stream="probe held-out", epoch=0))
    by_class = order[labels[order].argsort(stable=True)]
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[by_class[2::5]] = True
    return held


def parts(values: Float[Tensor, "images d"], classes: int, device: torch.device) -> Iterator[Float[Tensor, "part d"]]:
    """Cut features so that the class scores of a part are at most `SCORES`, and bring each to a device."""
    for part in torch.split(values, max(1, SCORES // classes)):
        yield part.to(device)


def logits(
    weight: Float[Tensor, "classes d_and_bias"], features: Float[Tensor, "images d"]
) -> Float[Tensor, "images classes"]:
    """Class scores; the last column of the weight is the bias."""
    return torch.addmm(weight[:, -1], features, weight[:, :-1].T)


def cross_entropies(
    weight: Float[Tensor, "classes d_and_bias"], features: Float[Tensor, "images d"], labels: Int64[Tensor, " images"]
) -> Iterator[Float[Tensor, ""]]:
    """The mean cross-entropy as a sum over parts of the images, one by one: the scores of one part are held."""
    size = max(1, SCORES // len(weight))
    for part, wanted in zip(torch.split(features, size), torch.split(labels, size), strict=True):
        yield F.cross_entropy(logits(weight, part), wanted) * (len(part) / len(features))


def fit_logistic(
    features: Float[Tensor, "images d"],
    labels: Int64[Tensor, " images"],
    weight_decay: float,
    start: Float[Tensor, "classes d_and_bias"],
) -> Float[Tensor, "classes d_and_bias"]:
    """Minimise mean cross-entropy + weight_decay / 2 · ‖W‖² (the bias is free) by L-BFGS from `start`."""
    weight = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight],
        max_iter=300,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = weight_decay / 2 * weight[:, :-1].square().sum()
        torch.autograd.backward(total)
        total = total.detach()
        for loss in cross_entropies(weight, features, labels):
            torch.autograd.backward(loss)
            total += loss.detach()
        return total

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach()


def classes_of(train: Pooled, test: Pooled) -> int:
    """Count the classes of both sets; refuses images without a label."""
    for name, pooled in (("training", train), ("test", test)):
        if len(pooled.labels) == 0:
            raise BadInput(f"the {name} set holds no images")
        if pooled.labels.min() < 0:
            unknown = pooled.names[int(pooled.labels.argmin())]
            raise BadInput(f"the {name} image {unknown} has no label: give {with_labels()}")
    if train.values.shape[1] != test.values.shape[1]:
        widths = f"{train.values.shape[1]} and {test.values.shape[1]}"
        raise BadInput(f"training and test features differ in width: {widths}")
    return int(max(train.labels.max(), test.labels.max())) + 1
