"""Targets: pixels or embeddings, masked after the encoder or before."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ijepa import config as configs
from ijepa.config import DataConfig, EncoderConfig, MultiblockMasks, PretrainConfig, TargetConfig
from ijepa.errors import IjepaError
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.model import (
    LOSSES,
    Targets,
    build_ijepa,
    gather_blocks,
    layer_norm,
    patchify,
    standardise,
)
from ijepa.jepa.step import Trainer
from ijepa.jepa.vit import gather_patches

GRID, BATCH = (8, 10), 6


def config(**choices):
    named = {name: choices.pop(name) for name in ("group_size", "draws_per_image") & choices.keys()}
    masks = MultiblockMasks(min_keep=3, draw="symmetric", **named)
    return PretrainConfig(
        data=DataConfig(image_px=(32, 40), batch_size=BATCH),
        encoder=EncoderConfig(arch=choices.pop("arch", "32x2x2"), patch_px=4),
        predictor=configs.PredictorConfig(dim=16, depth=1),
        masks=masks,
        targets=TargetConfig(**choices),
    )


def images(seed=0):
    return torch.randn(BATCH, 3, 32, 40, generator=torch.Generator().manual_seed(seed))


def test_patches_are_cut_row_by_row_and_standardised_to_mean_0_and_variance_1():
    picture = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12).float()
    patches = patchify(picture, 4)
    assert patches.shape == (2, 6, 48)
    torch.testing.assert_close(patches[1, 4].view(3, 4, 4), picture[1, :, 4:8, 4:8])
    patches = standardise(torch.rand(2, 5, 48) * 7 + 3)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("space", ["pixels", "normalised-pixels"])
def test_pixel_targets_are_the_pixels_of_the_target_blocks(space):
    chosen = config(space=space)
    [masks] = batch_masks(chosen, 0)
    [(predictions, targets)] = build_ijepa(chosen)(images(), [masks])
    assert predictions.shape == targets.shape
    pixels = patchify(images(), 4)
    pixels = standardise(pixels) if space == "normalised-pixels" else pixels
    block, image = 2, 4
    torch.testing.assert_close(
        targets.unflatten(0, (4, BATCH))[block, image], pixels[image, masks.targets[block, image]]
    )


@pytest.mark.parametrize(("masked", "sees_the_rest"), [("output", True), ("input", False)])
def test_input_masked_targets_know_nothing_but_their_block(masked, sees_the_rest):
    chosen = config(masked=masked)
    [masks] = batch_masks(chosen, 0)
    model = build_ijepa(chosen)
    changed = images()
    outside = min(set(range(80)) - set(masks.targets[0, 0].tolist()))
    row, column = divmod(outside, GRID[1])
    changed[0, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 1.0
    first, second = (model(picture, [masks])[0][1][0] for picture in (images(), changed))
    assert torch.equal(first, second) is not sees_the_rest


@pytest.mark.parametrize("masked", ["output", "input"])
def test_targets_of_the_last_layer_alone_are_the_default_bit_for_bit(masked):
    answers = []
    for layers in (None, (3,)):
        chosen = config(masked=masked, layers=layers, arch="32x3x2")
        [masks] = batch_masks(chosen, 0)
        answers += build_ijepa(chosen)(images(), [masks])
    (predicted, wanted), (again, same) = answers
    assert torch.equal(wanted, same)
    assert torch.equal(predicted, again)


@pytest.mark.parametrize("masked", ["output", "input"])
def test_targets_of_several_layers_are_each_normed_and_lie_side_by_side(masked):
    chosen = config(masked=masked, layers=(1, 3), arch="32x3x2")
    [masks] = batch_masks(chosen, 0)
    model, outputs = build_ijepa(chosen), []
    model.target_encoder.norm.bias.data.fill_(0.5)  # a fresh norm would do nothing after the other
    model.target_encoder.blocks[0].register_forward_hook(lambda *call: outputs.append(call[2]))
    [(predictions, targets)] = model(images(), [masks])
    assert predictions.shape == targets.shape == (4 * BATCH, masks.targets.shape[2], 64)
    first, last = targets.split(32, dim=-1)
    by_hand = layer_norm(outputs[0])
    if masked == "output":
        by_hand = gather_blocks(by_hand, masks.targets)
    torch.testing.assert_close(first, by_hand)
    alone = Targets(TargetConfig(masked=masked), model.target_encoder, images())
    assert torch.equal(last, alone.of(slice(None), masks.targets))


@pytest.mark.parametrize("layers", [None, (1, 2)])
def test_the_norm_of_the_targets_is_layer_norm_half_a_tanh_or_none(layers):
    found = {}
    for norm in ("layer", "dyntanh", "none"):
        chosen = config(norm=norm, layers=layers)
        model = build_ijepa(chosen)
        model.target_encoder.norm.weight.data.fill_(3.0)
        [masks] = batch_masks(chosen, 0)
        found[norm] = model(images(), [masks])[0][1]
    torch.testing.assert_close(found["dyntanh"], torch.tanh(found["none"] / 2))
    parts = found["none"].chunk(len(layers or (1,)), dim=-1)
    torch.testing.assert_close(found["layer"], torch.cat([layer_norm(p) for p in parts], dim=-1))


@pytest.mark.parametrize("masked", ["output", "input"])
def test_draws_of_an_image_share_one_target_pass_and_are_each_worth_the_same(masked):
    chosen = config(draws_per_image=3, group_size=4, masked=masked)
    model, seen = build_ijepa(chosen), []
    model.target_encoder.blocks[0].register_forward_hook(lambda *call: seen.append(call[2]))
    groups = batch_masks(chosen, 0)
    assert [len(masks.context) for masks in groups] == [4, 2] * 3
    answers = model(images(), groups)
    assert masked == "input" or len(seen) == 1
    sums = [0.0] * 3
    for number, (masks, (predicted, target)) in enumerate(zip(groups, answers, strict=True)):
        alone = images()[:4] if number % 2 == 0 else images()[4:]
        [(again, wanted)] = model(alone, [masks])
        torch.testing.assert_close(again, predicted)
        torch.testing.assert_close(wanted, target)
        loss = float(LOSSES["smooth_l1"](predicted.detach(), target))
        sums[number // 2] += loss * len(masks.context) / BATCH
    outcome = Trainer(model, chosen.optimization, 10).step(0, images(), groups)
    assert float(outcome.loss) == pytest.approx(sum(sums) / 3, rel=1e-5)


def test_blocks_beyond_the_last_target_layer_are_not_computed_and_must_be_there():
    chosen = config(layers=(1, 2), arch="32x3x2")
    model = build_ijepa(chosen)
    model.target_encoder.blocks[2].register_forward_hook(lambda *_: pytest.fail("was computed"))
    model(images(), batch_masks(chosen, 0))
    with pytest.raises(IjepaError, match=r"block 4, but 32x3x2 has 3 blocks"):
        build_ijepa(config(layers=(2, 4), arch="32x3x2"))


@given(
    blocks=st.integers(1, 4), batch=st.integers(1, 5), length=st.integers(1, 9), seed=st.integers(0)
)
def test_gathered_blocks_are_those_of_the_tokens_repeated(blocks, batch, length, seed):
    generator = torch.Generator().manual_seed(seed % 2**63)
    tokens = torch.randn(batch, 9, 3, generator=generator)
    index = torch.rand(blocks, batch, 9, generator=generator).argsort(-1)[..., :length]
    published = gather_patches(tokens.repeat(blocks, 1, 1), index.flatten(0, 1))
    assert torch.equal(gather_blocks(tokens, index), published)


@pytest.mark.parametrize(
    "choice",
    [
        {"space": "pixels", "masked": "input"},
        {"space": "pixels", "layers": (1,)},
        {"space": "pixels", "norm": "none"},
        {"norm": "batch"},
        {"loss": "huber"},
        {"layers": (2, 1)},
        {"layers": (1, 1)},
        {"layers": (0, 1)},
        {"layers": ()},
    ],
)
def test_impossible_targets_are_refused(choice):
    with pytest.raises(ValueError, match=r"come from no encoder|Input should be|ascend|at least 1"):
        TargetConfig(**choice)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_every_loss_is_zero_for_a_perfect_prediction_only(loss):
    targets = torch.randn(3, 4)
    assert loss(targets, targets) == 0
    assert loss(targets + 0.1, targets) > 0


@pytest.mark.parametrize("group_size", [2, 128])
@pytest.mark.parametrize(
    "choice", [{}, {"layers": (1, 2)}, {"space": "pixels"}, {"draws_per_image": 2}]
)
def test_micro_batches_change_a_step_by_rounding_only(group_size, choice):
    chosen = config(**choice, group_size=group_size)
    ends = []
    for micro_batch in (None, 1, 4):
        model = build_ijepa(chosen)
        trainer = Trainer(model, chosen.optimization, 10, micro_batch)
        losses = [trainer.step(step, images(step), batch_masks(chosen, 0)) for step in range(3)]
        ends.append((losses[-1], model.encoder.blocks[0].attn.qkv.weight.detach()))
    for outcome, weight in ends[1:]:
        torch.testing.assert_close(outcome.loss, ends[0][0].loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(outcome.grad_norm, ends[0][0].grad_norm, rtol=1e-4, atol=0)
        torch.testing.assert_close(weight, ends[0][1], rtol=0, atol=2e-6)
