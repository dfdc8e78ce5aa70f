"""The networks: initial weights, what reaches what, gradients, other image sizes, and the depth teacher."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from depthjepa.config.reading import load_config
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput
from depthjepa.grid import gather, patchify
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.feature import FeatureGuide
from depthjepa.guidance.target import CLIP, Description, Whitening, fit_whitening, on_cells
from depthjepa.guidance.teachers.ground_truth import DepthTeacher, to_disparity
from depthjepa.losses import Latents, feature_depth_loss
from depthjepa.masks import MaskConfig, Masks, sample_masks
from depthjepa.method import build_encoder, build_method, build_teacher
from depthjepa.model.blocks import Attention, spelled_out_attention
from depthjepa.model.heads.table import LATENT_HEADS
from depthjepa.model.jepa import JEPA
from depthjepa.model.predictor import Predictor, PredictorConfig
from depthjepa.model.supervised import Supervised
from depthjepa.model.vit import ModelConfig, Shape, VisionTransformer, initialise, normalise, sine_cosine

SHAPE = Shape(width=32, depth=2, heads=4, hidden=128)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def encoder(grid=(8, 8), seed=0) -> VisionTransformer:
    model = VisionTransformer(SHAPE, 8, grid)
    initialise(model, generator(seed))
    return liven(model)


def liven(model: torch.nn.Module) -> torch.nn.Module:
    """Weights ten times the initial ones, so that attention is far from uniform and errors would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return model


def jepa(head: str | None = "linear", fill="zero", grid=(8, 8), weight=0.5) -> JEPA:
    predictor = Predictor(PredictorConfig(depth=2, width=16), SHAPE, grid)
    initialise(predictor, generator(1))
    guide = (
        None
        if head is None
        else FeatureGuide(
            LATENT_HEADS.load(head)(fill, SHAPE.width, 4), FeatureGuidance(weight=weight, read="predicted"), SHAPE.depth
        )
    )
    if guide is not None:
        initialise(guide, generator(2))
    return JEPA(encoder(grid), liven(predictor), guide)


def some_masks(count=3, grid=(8, 8)) -> Masks:
    return sample_masks(MaskConfig(), grid, seed=0, epoch=0, indices=np.arange(count), batch_index=0)


def some_latents(count=3, grid=(8, 8)) -> Latents:
    values = noise(count, 4, 2 * grid[0], 2 * grid[1], seed=5)
    return Latents(values, torch.ones_like(values, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_initialise_reaches_every_parameter_with_the_documented_values(kind):
    model = torch.nn.ModuleDict(
        {
            "encoder": VisionTransformer(SHAPE, 8, (8, 8)),
            "predictor": Predictor(PredictorConfig(2, 16), SHAPE, (8, 8)),
            "head": LATENT_HEADS.load(kind)("learned", SHAPE.width, 4),
            "classes": torch.nn.Linear(SHAPE.width, 10),
        }
    )
    norms = {id(each.weight) for each in model.modules() if isinstance(each, torch.nn.LayerNorm)}
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    initialise(model, generator())
    drawn = []
    for name, parameter in model.named_parameters():
        if id(parameter) in norms:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            count = parameter.numel()
            assert float(parameter.detach().std()) == pytest.approx(0.02, abs=5 * 0.02 / (2 * count) ** 0.5), name
            assert abs(float(parameter.detach().mean())) < 5 * 0.02 / count**0.5, name
            drawn.append(parameter.flatten()[:8].tolist())
    assert len({tuple(values) for values in drawn}) == len(drawn)  # no two are alike


TINY = ["model.width=32", "model.depth=2", "model.heads=4", "predictor.width=16", "predictor.depth=1"]


def method(*overrides: str):
    supervised = "train.objective=supervised" in overrides
    config = load_config("demo", [*(TINY[:3] if supervised else TINY), *overrides])
    return build_method(config, build_teacher(config, has_depth=True), classes=6)


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_twins_start_from_the_same_bits(head):
    guided, unguided = method(f"guidance.head={head}"), method("guidance.kind=none")
    assert guided.guide is not None and unguided.guide is None
    for part in ("context_encoder", "target_encoder", "predictor"):
        assert equal(getattr(guided, part), getattr(unguided, part)), part
    assert equal(guided.context_encoder, guided.target_encoder)
    supervised, random = method("train.objective=supervised"), build_encoder(load_config("demo", TINY))
    assert equal(guided.context_encoder, supervised.context_encoder) and equal(random, supervised.context_encoder)


def test_another_seed_gives_other_weights_in_every_part():
    first, again, other = method(), method(), method("seed=1")
    assert equal(first, again)
    for part in ("context_encoder", "predictor", "guide"):
        mine, theirs = getattr(first, part), getattr(other, part)
        differing = [
            not torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True) if a.ndim > 1
        ]
        assert all(differing), part


def test_a_loaded_checkpoint_does_not_change_the_positions_of_the_next_model():
    first = encoder()
    state = {name: value + 1 for name, value in first.state_dict().items()}
    first.load_state_dict(state)
    predictor = Predictor(PredictorConfig(1, SHAPE.width), SHAPE, (8, 8))
    torch.nn.init.zeros_(predictor.predictor_pos_embed)
    assert torch.equal(encoder().pos_embed[0], sine_cosine.__wrapped__(SHAPE.width, (8, 8)))


def test_sine_cosine_is_what_the_formula_says():
    table = sine_cosine(16, (3, 5))
    for row in range(3):
        for column in range(5):
            for i in range(4):
                rate = 10000 ** (-i / 4)
                expected = [
                    math.sin(column * rate),
                    math.cos(column * rate),
                    math.sin(row * rate),
                    math.cos(row * rate),
                ]
                assert table[row * 5 + column, i::4].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"width": 30, "heads": 4}, "model.width=30 must be a multiple"), ({"width": 66, "heads": 3}, "multiple of 4")],
)
def test_widths_that_heads_do_not_divide_are_refused(keys, said):
    with pytest.raises(BadInput, match=said):
        _ = ModelConfig(**keys).shape
    with pytest.raises(BadInput, match=r"predictor.width=18 must be a multiple of 4 and of the encoder's 4 heads"):
        Predictor(PredictorConfig(1, 18), SHAPE, (8, 8))


def test_keeping_every_patch_in_any_order_computes_the_whole_image():
    model, images = encoder(), noise(2, 3, 64, 64)
    order = torch.stack([torch.randperm(64, generator=generator(seed)) for seed in (3, 4)])
    whole = model(images)
    expected = whole.gather(1, order[..., None].expand(-1, -1, SHAPE.width))
    torch.testing.assert_close(model(images, order), expected, atol=1e-5, rtol=0)


def test_dropped_patches_are_never_read():
    model, images, keep = encoder(), noise(3, 3, 64, 64), some_masks().context
    dirty = images.clone()
    for image, kept in zip(dirty, keep.tolist(), strict=True):
        for cell in set(range(64)) - set(kept):
            row, column = divmod(cell, 8)
            image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = math.nan
    assert dirty.isnan().any()
    assert torch.equal(model(images, keep), model(dirty, keep))


@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_explicit_attention(padded):
    attention = Attention(32, 4)
    initialise(attention, generator())
    liven(attention)
    tokens = noise(3, 11, 32)
    readable = (torch.arange(11) < torch.tensor([[11], [7], [3]]))[:, None, None] if padded else None
    mixed = attention(tokens, readable)
    query, key, value = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in attention.qkv(tokens).chunk(3, -1))
    spelled_out = spelled_out_attention(query, key, value, readable).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, attention.proj(spelled_out), atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed, slow_attention(attention, tokens, readable), atol=1e-5, rtol=0)


def slow_attention(attention, tokens, readable):
    """Token by token and head by head, over the readable tokens only."""
    outputs = torch.zeros_like(tokens)
    query, key, value = attention.qkv(tokens).chunk(3, -1)
    size = tokens.shape[-1] // attention.heads
    for image in range(len(tokens)):
        chosen = slice(None) if readable is None else readable[image, 0, 0]
        for head in range(attention.heads):
            part = slice(head * size, (head + 1) * size)
            for token in range(tokens.shape[1]):
                scores = key[image, chosen, part] @ query[image, token, part] / size**0.5
                outputs[image, token, part] = scores.softmax(0) @ value[image, chosen, part]
    return attention.proj(outputs)


def test_features_of_the_last_layer_are_the_output():
    model, images = encoder(), noise(2, 3, 64, 64)
    first, last, again = model.features(images, [0, -1, 1])
    assert torch.equal(last, model(images)) and torch.equal(last, again) and not torch.equal(first, last)
    assert torch.equal(model.features(images, [-1, 0])[1], first)
    with pytest.raises(BadInput, match=r"layers \[2\] are not all in -2..1"):
        model.features(images, [2])


@pytest.mark.parametrize("size", [(96, 96), (64, 96), (96, 64), (32, 64)])
def test_other_image_sizes_than_the_built_one(size):
    model, images = encoder(), noise(2, 3, *size)
    rows, columns = size[0] // 8, size[1] // 8
    tokens = model(images)
    assert tokens.shape == (2, rows * columns, SHAPE.width) and torch.isfinite(tokens).all()
    positions = model.positions((rows, columns))[0].view(rows, columns, -1)
    # The built positions change along one axis only in each half of the width, and stretching keeps that.
    half = SHAPE.width // 2
    torch.testing.assert_close(positions[..., :half], positions[:1, :, :half].expand(rows, -1, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        positions[..., half:], positions[:, :1, half:].expand(-1, columns, -1), atol=1e-4, rtol=0
    )
    keep = torch.stack([torch.arange(0, rows * columns, 2)] * 2)
    assert model(images, keep).shape == (2, rows * columns // 2, SHAPE.width)


def test_stretched_positions_are_those_of_the_patch_centres():
    """A patch of half the size has its centre a quarter of a patch off; bicubic weights miss it by a twentieth."""
    positions = encoder().positions((16, 16))[0].view(16, 16, -1)
    for row in range(4, 12):
        for i in range(2, SHAPE.width // 4):
            rate = 10000 ** (-i / (SHAPE.width // 4))
            place = ((row + 0.5) / 2 - 0.5) * rate
            found = positions[row, 5, SHAPE.width // 2 + i :: SHAPE.width // 4].tolist()
            assert found == pytest.approx([math.sin(place), math.cos(place)], abs=0.06 * rate)


def test_positions_of_the_built_grid_are_not_touched():
    model = encoder()
    assert model.positions((8, 8)) is model.pos_embed
    # And stretching itself changes nothing when the grid stays the same.
    maps = model.pos_embed.transpose(1, 2).reshape(1, -1, 8, 8)
    torch.testing.assert_close(F.interpolate(maps, (8, 8), mode="bicubic", align_corners=False), maps)


def test_normalise_gives_mean_zero_and_deviation_one():
    mean, deviation = (0.5, 0.2, 0.4), (0.1, 0.3, 0.2)
    images = noise(64, 3, 8, 8) * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]
    torch.testing.assert_close(normalise(images, mean, deviation), noise(64, 3, 8, 8), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(8, 8), (6, 10)])
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_padding_of_targets_changes_no_loss_and_no_gradient(head, grid):
    model, masks, latents = jepa(head, grid=grid), some_masks(grid=grid), some_latents(grid=grid)
    images = noise(3, 3, 8 * grid[0], 8 * grid[1])
    assert not masks.valid.all()
    other = torch.randint(0, grid[0] * grid[1], masks.targets.shape, generator=generator())
    repadded = Masks(masks.context, torch.where(masks.valid, masks.targets, other), masks.valid)
    results = []
    for each in (masks, repadded):
        model.zero_grad()
        losses = model(images, each, latents)
        losses.total.backward()
        results.append([losses.total, *losses.parts.values(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_padding_is_invisible_to_the_predictions_of_the_others():
    model, masks = jepa(None), some_masks()
    context = model.context_encoder(noise(3, 3, 64, 64), masks.context)
    short = masks.valid.sum(-1).min()
    assert short < masks.targets.shape[2]
    predicted = model.predictor(context, masks).targets
    for image in range(3):
        for block in range(4):
            cells = masks.targets[image, block][masks.valid[image, block]]
            alone = model.predictor(
                context[image : image + 1], Masks(masks.context[image : image + 1], cells[None, None])
            ).targets
            expected = predicted[image, block][masks.valid[image, block]]
            torch.testing.assert_close(alone[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_targets_are_the_normalised_tokens_of_the_whole_image():
    model, images, masks = jepa(None), noise(3, 3, 64, 64), some_masks()
    targets = gather(model.targets(images), masks.targets.flatten(1)).view(*masks.targets.shape, -1)
    whole = model.target_encoder(images)
    for image, block, k in [(0, 0, 0), (1, 3, 2), (2, 2, 5)]:
        token = whole[image, masks.targets[image, block, k]]
        expected = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(targets[image, block, k], expected)
    assert not targets.requires_grad


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_the_depth_loss_alone_teaches_context_encoder_predictor_and_head(head):
    model = jepa(head, fill="learned")
    losses = model(noise(3, 3, 64, 64), some_masks(), some_latents())
    torch.testing.assert_close(losses.total, losses.parts["loss_jepa"] + 0.5 * losses.parts["loss_depth"])
    losses.parts["loss_depth"].backward()
    # A linear head is not judged on holes, so its fill cannot learn; the small CNN's can.
    unjudged = {"guide.head.fill"} if head == "linear" else set()
    for name, parameter in model.named_parameters():
        if name.startswith("target_encoder."):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert (parameter.grad.norm() > 0) == (name not in unjudged), name


def test_the_latent_loss_alone_never_reaches_target_encoder_or_head():
    model = jepa()
    model(noise(3, 3, 64, 64), some_masks(), some_latents()).parts["loss_jepa"].backward()
    for name, parameter in model.named_parameters():
        learns = name.startswith(("context_encoder.", "predictor."))
        assert (parameter.grad is not None and bool(parameter.grad.norm() > 0)) == learns, name


def test_without_latents_or_head_the_loss_is_the_latent_loss():
    guided, unguided, images, masks = jepa(), jepa(None), noise(3, 3, 64, 64), some_masks()
    expected = unguided(images, masks).total
    assert torch.equal(guided(images, masks).total, expected)
    assert torch.equal(guided(images, masks, some_latents()).parts["loss_jepa"], expected)


def test_moving_average():
    model = jepa(None)
    with torch.no_grad():
        for parameter in model.context_encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(9)))
    before = copy.deepcopy(model)
    model.after_step(0.9)
    old = zip(before.target_encoder.parameters(), before.context_encoder.parameters(), strict=True)
    for new, (target, context) in zip(model.target_encoder.parameters(), old, strict=True):
        torch.testing.assert_close(new, 0.9 * target + 0.1 * context)
    assert equal(model.context_encoder, before.context_encoder)
    kept = copy.deepcopy(model.target_encoder)
    model.after_step(1.0)
    assert equal(model.target_encoder, kept)
    model.after_step(0.0)
    assert equal(model.target_encoder, model.context_encoder)


def test_linear_head_is_judged_only_where_a_token_stands():
    model, masks, latents = jepa("linear"), some_masks(), some_latents()
    images = noise(3, 3, 64, 64)
    covered = torch.zeros(3, 64, dtype=torch.bool)
    for image in range(3):
        covered[image, masks.context[image]] = True
        covered[image, masks.targets[image][masks.valid[image]]] = True
    assert not covered.all()
    fine = covered.view(3, 1, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    levels, told, masks = model.predict(images, masks)
    predicted, judged = model.guide.read(model.context_encoder, images, levels, told, masks)["predicted"]
    assert torch.equal(judged, fine)
    elsewhere = Latents(torch.where(fine, latents.values, 1e6), latents.valid)
    assert torch.equal(
        model(images, masks, elsewhere).parts["loss_depth"], model(images, masks, latents).parts["loss_depth"]
    )
    assert predicted.shape == latents.values.shape


def tokens_of(model, images, masks):
    context = model.context_encoder(images, masks.context)
    return context, model.predictor(context, masks).targets


def test_conv_head_sees_holes_as_zeros_and_is_judged_on_them():
    head = LATENT_HEADS.load("conv")("zero", SHAPE.width, 4)
    initialise(head, generator())
    coverage = (torch.rand(2, 64, generator=generator()) > 0.5).float()
    tokens = noise(2, 64, SHAPE.width) * coverage[..., None]
    # Zeros in holes are all it is told: coverage itself changes nothing.
    assert torch.equal(head(tokens, coverage, (8, 8)), head(tokens, torch.ones_like(coverage), (8, 8)))
    assert head.judged(coverage, (8, 8)).all()
    # A hole is read by its neighbours: what stands there matters.
    filled = torch.where(coverage[..., None] > 0, tokens, 1.0)
    assert not torch.allclose(head(filled, coverage, (8, 8)), head(tokens, coverage, (8, 8)))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_learned_fill_stands_in_the_holes_and_nowhere_else(kind):
    zero, learned = (LATENT_HEADS.load(kind)(fill, SHAPE.width, 4) for fill in ("zero", "learned"))
    for head in (zero, learned):
        initialise(head, generator())
    with torch.no_grad():
        learned.load_state_dict(zero.state_dict(), strict=False)
        learned.fill.fill_(0.7)
    coverage = (torch.rand(2, 64, generator=generator()) > 0.5).float()
    tokens = noise(2, 64, SHAPE.width) * coverage[..., None]
    by_hand = torch.where(coverage[..., None] > 0, tokens, 0.7)
    assert torch.equal(learned(tokens, coverage, (8, 8)), zero(by_hand, coverage, (8, 8)))
    assert torch.equal(learned(tokens, torch.ones_like(coverage), (8, 8)), zero(tokens, coverage, (8, 8)))


def test_linear_head_reads_each_token_by_itself_and_keeps_its_place():
    head = LATENT_HEADS.load("linear")("zero", SHAPE.width, 4)
    initialise(head, generator())
    tokens, everywhere = noise(1, 15, SHAPE.width), torch.ones(1, 15)
    changed = tokens.clone()
    changed[0, 7] += noise(SHAPE.width, seed=1)  # row 1, column 2 of 3 x 5
    moved = (head(tokens, everywhere, (3, 5)) != head(changed, everywhere, (3, 5))).any(1)[0]
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(moved, expected)


def test_supervised_adds_depth_and_class_loss_where_the_data_have_them():
    model, images = method("train.objective=supervised"), noise(3, 3, 48, 48)
    assert isinstance(model, Supervised)
    latents, labels = some_latents(grid=(6, 6)), torch.tensor([0, 5, 2])
    losses = model(images, None, latents, labels)
    tokens = model.context_encoder(images)
    depth, judged = model.depth_latents(tokens)
    assert judged.all()
    expected = {
        "loss_depth": feature_depth_loss(depth, latents.values, latents.valid),
        "loss_classes": F.cross_entropy(model.head["classes"](tokens.mean(1)), labels),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses.parts[name], value)
    # Each loss counts in units of what a constant prediction has.
    model.floor = 0.4
    total = model(images, None, latents, labels).total
    expected_total = expected["loss_depth"] / 0.4 + expected["loss_classes"] / math.log(model.classes)
    torch.testing.assert_close(total, expected_total)
    losses.total.backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.parameters())
    assert set(model(images, None, None, labels).parts) == {"loss_classes"}
    assert set(model(images, None, latents, None).parts) == {"loss_depth"}


def test_what_the_data_cannot_teach_is_refused():
    config = load_config("demo", [*TINY[:3], "train.objective=supervised"])
    with pytest.raises(BadInput, match="needs depth or labels; scenes:2 has neither"):
        build_method(config, None, classes=0)
    with pytest.raises(BadInput, match=r"needs depth, but data.root=scenes:2 has none"):
        build_teacher(load_config("demo"), has_depth=False)
    assert build_teacher(load_config("demo", ["guidance.kind=none"]), has_depth=True) is None


def depth_batch(depth: torch.Tensor, zoom: list[float] | None = None) -> Batch:
    count = len(depth)
    return Batch(
        index=torch.arange(count),
        images=torch.zeros(count, 3, *depth.shape[2:]),
        depth=depth,
        zoom=torch.tensor(zoom or [1.0] * count),
        labels=torch.full((count,), -1),
    )


def some_depth(count=2, height=32, width=48) -> torch.Tensor:
    return 1 + 20 * torch.rand(count, 1, height, width, generator=generator(4))


def test_depth_latents_decode_to_the_mean_disparity_of_each_part():
    depth = some_depth()
    depth[0, 0, 3:5, 2:9] = 0  # unmeasured pixels, but no part without any
    latents = DepthTeacher().batch_latents(depth_batch(depth), (4, 6))
    assert latents.valid.all() and latents.values.shape == (2, 4, 4, 6)
    decoded = to_disparity(latents.values)
    for image, row, column in np.ndindex(2, 8, 12):
        part = depth[image, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        expected = float((1 / part[part > 0]).mean())
        assert float(decoded[image, 0, row, column]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("garbage", [0.0, -1.0, math.nan, math.inf])
def test_an_unmeasured_part_is_invalid(garbage):
    depth = some_depth()
    depth[1, 0, 8:12, 20:24] = garbage  # part (2, 5), which is the upper right one of cell (1, 2)
    latents = DepthTeacher().batch_latents(depth_batch(depth), (4, 6))
    expected = torch.ones(2, 4, 4, 6, dtype=torch.bool)
    expected[1, 1, 1, 2] = False
    assert torch.equal(latents.valid, expected) and torch.isfinite(latents.values).all()


def test_zoom_multiplies_the_disparity():
    depth = some_depth()
    plain = DepthTeacher().batch_latents(depth_batch(depth), (4, 6)).values
    zoomed = DepthTeacher().batch_latents(depth_batch(depth, [1.0, 2.5]), (4, 6)).values
    torch.testing.assert_close(zoomed, plain * torch.tensor([1.0, 2.5])[:, None, None, None])
    # A crop at zoom s is a view in which everything stands at depth / s.
    nearer = DepthTeacher().batch_latents(depth_batch(depth / 2.5), (4, 6)).values
    torch.testing.assert_close(zoomed[1], nearer[1])


def test_depth_teacher_without_depth_is_refused():
    batch = Batch(torch.arange(1), torch.zeros(1, 3, 8, 8), None, torch.ones(1), torch.tensor([-1]))
    with pytest.raises(BadInput, match="needs depth: give an RGB-D"):
        DepthTeacher().batch_latents(batch, (2, 2))


class Told:
    """A teacher that says what it was told, for the sample numbers of a batch."""

    def __init__(self, values: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        self.latents = Latents(values, torch.ones_like(values, dtype=torch.bool) if valid is None else valid)

    def describe(self) -> Description:
        channels = self.latents.values.shape[1]
        return Description("told", channels, None, "1", "undirected", stochastic=False, needs_depth=True)

    def to(self, device: torch.device) -> Told:
        return self

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        return Latents(self.latents.values[batch.index], self.latents.valid[batch.index])


def told_batches(count: int, size: int) -> list[Batch]:
    whole = depth_batch(torch.ones(count, 1, 8, 8))
    return [
        Batch(whole.index[part], whole.images[part], None, whole.zoom[part], whole.labels[part])
        for part in torch.arange(count).split(size)
    ]


def test_whitened_latents_have_mean_zero_in_every_cell_and_deviation_one_in_every_channel():
    values = noise(200, 3, 4, 6) * torch.tensor([0.1, 3.0, 40.0])[:, None, None] + 50 * noise(1, 3, 4, 6, seed=1)
    valid = (torch.rand(200, 1, 4, 6, generator=generator(2)) > 0.3).expand_as(values)
    values = torch.where(valid, values, math.nan)
    whitening, floor = fit_whitening(Told(values, valid), told_batches(200, 32), (4, 6))
    white = whitening.apply(Latents(values, valid))
    assert (white.values[~valid] == 0).all() and torch.equal(white.valid, valid)
    assert white.values.abs().max() < CLIP
    count = valid.sum(0)
    torch.testing.assert_close(white.values.sum(0) / count, torch.zeros(3, 4, 6), atol=1e-4, rtol=0)
    deviation = (white.values.square().sum((0, 2, 3)) / count.sum((1, 2))).sqrt()
    torch.testing.assert_close(deviation, torch.ones(3), atol=1e-4, rtol=0)
    # The floor is what the constant prediction scores.
    images = [
        F.smooth_l1_loss(each[known], torch.zeros_like(each[known]))
        for each, known in zip(white.values, valid, strict=True)
    ]
    assert floor == pytest.approx(float(torch.stack(images).mean()), rel=1e-5)
    # Undoing gives the teacher's own values back, prediction zero its mean map.
    torch.testing.assert_close(whitening.undo(white.values)[valid], values[valid], atol=1e-3, rtol=1e-4)
    assert torch.equal(whitening.undo(torch.zeros(1, 3, 4, 6))[0], whitening.mean)


def test_a_cell_that_no_image_of_the_fit_measured_has_the_channels_mean():
    values, valid = 3 + noise(20, 1, 4, 4), torch.ones(20, 1, 4, 4, dtype=torch.bool)
    valid[:, :, 0, 0] = False
    whitening, _ = fit_whitening(Told(values, valid), told_batches(20, 20), (4, 4))
    torch.testing.assert_close(whitening.mean[0, 0, 0], values[:, :, valid[0, 0]].mean())


def test_whitening_clips_at_five_deviations():
    whitening = Whitening(torch.zeros(1, 1, 3), torch.tensor([2.0]))
    values = torch.tensor([[[[-1e9, 1.0, 11.0]]]])
    white = whitening.apply(Latents(values, torch.ones_like(values, dtype=torch.bool)))
    assert white.values.flatten().tolist() == [-5.0, 0.5, 5.0]


def test_a_channel_that_does_not_vary_asks_for_nothing():
    values = torch.cat([noise(20, 1, 4, 4), torch.full((20, 1, 4, 4), 1e3) + noise(1, 1, 4, 4, seed=1)], 1)
    whitening, floor = fit_whitening(Told(values), told_batches(20, 8), (4, 4))
    assert whitening.deviation[1] == 1 and math.isfinite(floor)
    white = whitening.apply(Latents(values, torch.ones_like(values, dtype=torch.bool)))
    assert white.values[:, 1].abs().max() < 1e-3


def test_latents_of_another_resolution_are_averaged_to_twice_the_patch_grid():
    values = noise(2, 3, 8, 12)
    valid = (torch.rand(2, 1, 8, 12, generator=generator(3)) > 0.4).expand_as(values).clone()
    valid[0, :, :2, :2] = False
    found = on_cells(Told(torch.where(valid, values, math.nan), valid), told_batches(2, 2)[0], (4, 6))
    assert found.values.shape == (2, 3, 4, 6) and not found.valid[0, :, 0, 0].any()
    for image, channel, row, column in np.ndindex(2, 3, 4, 6):
        cell = (image, channel, slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        known = values[cell][valid[cell]]
        assert bool(found.valid[image, channel, row, column]) == bool(len(known))
        if len(known):
            torch.testing.assert_close(found.values[image, channel, row, column], known.mean())


def test_patches_of_the_encoder_and_cells_of_the_teacher_lie_alike():
    """A step edge in depth falls into the same patch column of images, tokens and latents."""
    depth = torch.full((1, 1, 64, 64), 2.0)
    depth[..., 24:] = 20.0  # three patches of eight pixels are near
    latents = DepthTeacher().batch_latents(depth_batch(depth), (16, 16)).values[0, 0]
    near = latents > latents.mean()
    patches = patchify(depth.expand(-1, 3, -1, -1), 8).mean(-1).view(8, 8) < 10
    assert torch.equal(near, patches.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_one_class_alone_cannot_be_supervised():
    config = load_config("demo", ["train.objective=supervised"])
    with pytest.raises(BadInput, match="at least two classes"):
        build_method(config, None, classes=1)


def test_the_linear_head_has_no_use_for_a_learned_fill():
    with pytest.raises(BadInput, match=r"guidance\.fill has no effect here: it takes a head that reads beside a patch"):
        load_config("demo", ["guidance.fill=learned"])
