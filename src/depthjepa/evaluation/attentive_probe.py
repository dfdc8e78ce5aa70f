"""Classification by attentive pooling: which tokens count is learned, the encoder stays frozen.

A mean over tokens hides what few of them say, and networks trained by predicting masked patches never had a reason to
make their mean telling: the attentive probe (V-JEPA, Bardes et al. 2024; CAPI, Darcet et al. 2025) reads them
through cross-attention with one learned query. In the form of efficient probing (Psomas et al. 2025) each head's query
meets the tokens without a key projection (one query times a key matrix is one vector a head anyway), and the values
of a head are its share of the channels of a value projection; a linear classifier follows, and no further layers.

Where we differ: queries start at 0 and the value projection at the identity, so learning starts from the linear
probe's mean pooling and needs no random weights; tokens are standardised per channel with the training set's figures;
the weight decay is chosen on held-out training images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from depthjepa import optim
from depthjepa.evaluation.classification import ClassifierResult, Standardiser, classes_of, held_out, inverse_deviation
from depthjepa.evaluation.features import Pooled
from depthjepa.evaluation.tokens import Tokens
from depthjepa.faults import BadInput
from depthjepa.fitting import update, walks
from depthjepa.progress import track

HEADS = 12  # at most; the width must be a multiple
BATCH = 128  # images of a step
WEIGHT_DECAYS = (0.1, 3.0, 10.0, 30.0)  # below the first, the weights hardly feel it in this many steps


class AttentivePooler(nn.Module):
    """Standardise tokens, average them by the attention of each head, project, normalise, classify."""

    def __init__(self, standard: Standardiser, classes: int) -> None:
        super().__init__()
        width = len(standard.mean)
        heads = max(heads for heads in range(1, HEADS + 1) if width % heads == 0)
        self.standard = standard
        self.queries = nn.Parameter(torch.zeros(heads, width))
        self.values = nn.Parameter(torch.eye(width).reshape(heads, width // heads, width))
        # Averaged over the last walk, when the weights hardly move any more.
        self.norm = nn.BatchNorm1d(width, affine=False, momentum=None)
        self.classifier = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.to(standard.mean.device)

    def attention(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n heads"]:
        """Weights of the tokens of each image, which sum to 1 for every head."""
        # The mean of the tokens moves all scores of a head alike, which the softmax does not see.
        return torch.softmax(tokens @ (self.queries * self.standard.inverse_deviation).T, 1)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b classes"]:
        """Class scores."""
        pooled = self.standard(self.attention(tokens).transpose(1, 2) @ tokens)
        projected = torch.einsum("bhd,hed->bhe", pooled, self.values).flatten(1)
        return F.linear(self.norm(projected), self.classifier, self.bias)


def attentive(
    train: tuple[Pooled, Tokens], test: tuple[Pooled, Tokens], *, epochs: int = 20, lr: float = 1e-3, seed: int = 0
) -> ClassifierResult:
    """Train the attentive probe on the training tokens and score it on both sets.

    AdamW with a cosine from `lr` to 0 over `epochs`, batches of 128 images, cross-entropy. The weight decay with the
    lowest cross-entropy on a held-out fifth of the training images (the same share of every class) is taken, and the
    probe is trained anew on all of them; all candidates learn on the same walks over the tokens, so the training set
    is walked over 2 x `epochs` + 4 times. The order of the images depends on `seed` alone.
    """
    (pooled, tokens), (test_pooled, test_tokens) = train, test
    classes, labels = classes_of(pooled, test_pooled), pooled.labels
    if len(labels) < 5:
        raise BadInput(f"an attentive probe needs at least 5 training images, and there are {len(labels)}")
    held = held_out(labels, seed)
    fitted, unseen = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    candidates = _fit(tokens, labels, fitted, classes, WEIGHT_DECAYS, epochs, lr, seed)
    losses = [float(F.cross_entropy(scores, labels[unseen])) for scores in _scores(candidates, tokens, unseen)]
    weight_decay = WEIGHT_DECAYS[losses.index(min(losses))]
    everything = torch.arange(len(labels))
    final = _fit(tokens, labels, everything, classes, (weight_decay,), epochs, lr, seed)
    on_train = _scores(final, tokens, everything)[0].argmax(1)
    predictions = _scores(final, test_tokens, torch.arange(len(test_pooled.labels)))[0].argmax(1)
    return ClassifierResult(
        train_accuracy=float((on_train == labels).double().mean()),
        val_accuracy=float((predictions == test_pooled.labels).double().mean()),
        weight_decay=weight_decay,
        predictions=predictions,
    )


def _fit(
    tokens: Tokens,
    labels: Int64[Tensor, " images"],
    places: Int64[Tensor, " chosen"],
    classes: int,
    weight_decays: Sequence[float],
    epochs: int,
    lr: float,
    seed: int,
) -> list[AttentivePooler]:
    """Train one pooler for each weight decay on the images at `places`, side by side on the same batches."""
    standard = _standardiser(tokens, places)
    poolers = [AttentivePooler(standard, classes) for _ in weight_decays]
    groups: list[dict[str, object]] = []
    for pooler, decay in zip(poolers, weight_decays, strict=True):
        matrices = [pooler.queries, pooler.values, pooler.classifier]
        groups += [{"params": matrices, "weight_decay": decay}, {"params": [pooler.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    per_epoch = -(-len(places) // BATCH)
    orders = walks(places, epochs, seed=seed, stream="attentive probe")
    for epoch, order in enumerate(track(orders, "epochs of the attentive probe", epochs)):
        if epoch == epochs - 1:
            for pooler in poolers:
                pooler.norm.reset_running_stats()
        parts = order.tensor_split(per_epoch)
        for number, (part, batch) in enumerate(zip(parts, tokens.parts(parts), strict=True)):
            step, target = epoch * per_epoch + number, labels[part].to(batch.device)
            rate = optim.learning_rate(step, start=lr, peak=lr, final=0.0, warmup=0, steps=epochs * per_epoch)
            update(optimizer, (F.cross_entropy(pooler(batch), target) for pooler in poolers), rate)
    return [pooler.eval() for pooler in poolers]


@torch.no_grad()
def _scores(
    poolers: Sequence[AttentivePooler], tokens: Tokens, places: Int64[Tensor, " chosen"]
) -> list[Float[Tensor, "chosen classes"]]:
    """Class scores of every pooler in one walk, on the CPU."""
    walk = tokens.parts(torch.split(places, BATCH))
    scores = [[pooler(batch).cpu() for pooler in poolers] for batch in walk]
    return [torch.cat(each) for each in zip(*scores, strict=True)]


def _standardiser(tokens: Tokens, places: Int64[Tensor, " chosen"]) -> Standardiser:
    """Mean and deviation of every channel over the tokens of the images at `places`, in one walk."""
    count, centre = 0, torch.zeros(0)
    total = squares = torch.zeros(0)
    for batch in tokens.parts(torch.split(places, BATCH)):
        flat = batch.flatten(0, 1).double()
        if count == 0:  # near the mean, so that sums of squares keep their digits
            centre, total, squares = flat.mean(0), torch.zeros_like(flat[0]), torch.zeros_like(flat[0])
        count += len(flat)
        total += (flat - centre).sum(0)
        squares += (flat - centre).square().sum(0)
    offset = total / count
    mean, variance = centre + offset, (squares / count - offset.square()).clamp_min(0)
    magnitude = (variance + mean.square()).sqrt()
    return Standardiser(mean.float(), inverse_deviation(variance.sqrt(), magnitude).float())
