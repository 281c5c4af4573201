"""Encoder and predictor: timm's weights, the protocol's sizes, each token from what it may see."""

import pytest
import timm
import torch

from ijepa.config import DataConfig, EncoderConfig, PredictorConfig, PretrainConfig
from ijepa.errors import IjepaError
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.model import LOSSES, build_ijepa, compile_blocks
from ijepa.jepa.vit import architecture, build_encoder, initialise
from ijepa.recipes import load_recipe


def small_encoder(seed=0, **options):
    config = EncoderConfig(arch="32x3x2", patch_px=4, **options)
    return build_encoder(config, (32, 32), torch.Generator().manual_seed(seed)).eval()


def small_predictor(arch, depth):
    config = PretrainConfig(
        data=DataConfig(image_px=32),
        encoder=EncoderConfig(arch=arch, patch_px=4),
        predictor=PredictorConfig(dim=16, depth=depth),
    )
    return build_ijepa(config).predictor


def test_weights_exchange_with_timm_key_for_key():
    theirs = timm.create_model(
        "vit_tiny_patch16_224", class_token=False, global_pool="avg", fc_norm=False, num_classes=0
    )
    config = EncoderConfig(arch="vit_tiny", patch_px=16)
    ours = build_encoder(config, (224, 224), torch.Generator())
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(ours.eval()(images).mean(1), theirs.eval()(images))


@pytest.mark.parametrize(
    ("arch", "patch_px", "millions", "predictor_millions", "depth"),
    [
        ("vit_tiny", 16, 5.49, 10.8, 6),
        ("vit_small", 16, 21.6, 10.9, 6),
        ("vit_base", 16, 85.65, 11.2, 6),
        ("vit_large", 16, 303.1, 22.1, 12),
        ("vit_huge", 14, 630.4, 22.3, 12),
        ("vit_giant", 16, 1011, 29.5, 16),
    ],
)
def test_sizes_are_the_published_ones(arch, patch_px, millions, predictor_millions, depth):
    config = EncoderConfig(arch=arch, patch_px=patch_px)
    with torch.device("meta"):
        whole = PretrainConfig(
            data=DataConfig(image_px=224), encoder=config, predictor=PredictorConfig(depth=depth)
        )
        model = build_ijepa(whole)
    for module, expected in ((model.encoder, millions), (model.predictor, predictor_millions)):
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert count / 1e6 == pytest.approx(expected, rel=5e-3)


def test_hidden_patches_do_not_reach_the_context():
    encoder, images = small_encoder(), torch.randn(1, 3, 32, 32)
    index = torch.arange(0, 64, 2).unsqueeze(0)
    changed = images.clone()
    changed[:, :, :4, 4:8] += 1.0  # patch 1
    assert torch.equal(encoder(images, index), encoder(changed, index))
    assert not torch.allclose(encoder(images), encoder(changed))


def test_a_target_block_is_predicted_alone_whatever_the_others_are():
    predictor = small_predictor("32x3x2", depth=2)
    context = torch.randn(2, 5, 32)
    index = torch.arange(10).view(2, 5)
    targets = torch.randint(0, 64, (3, 2, 6))
    together = predictor(context, index, targets).view(3, 2, 6, 32)
    for block in range(3):
        alone = predictor(context, index, targets[block : block + 1])
        torch.testing.assert_close(together[block], alone)


def test_the_last_layers_end_with_the_output():
    encoder, images = small_encoder(), torch.randn(2, 3, 32, 32)
    layers = encoder.forward_layers(images, (1, 2, 3), norm=True)
    assert [tokens.shape for tokens in layers] == [(2, 64, 32)] * 3
    torch.testing.assert_close(layers[-1], encoder(images))


def test_an_init_has_its_spread_and_the_same_seed_its_weights():
    config = EncoderConfig(arch="vit_tiny", patch_px=16)
    scaled = config.model_copy(update={"init": "depth-scaled"})
    first, second, deep = (
        build_encoder(one, (64, 64), torch.Generator().manual_seed(3))
        for one in (config, config, scaled)
    )
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    block = first.blocks[-1]
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not layer.bias.any()
    # Depth-scaled: what a block adds is divided by the root of twice its number.
    for number, (before, after) in enumerate(zip(first.blocks, deep.blocks, strict=True), start=1):
        for name in ("attn.proj", "mlp.fc2"):
            expected = before.get_submodule(name).weight / (2 * number) ** 0.5
            torch.testing.assert_close(after.get_submodule(name).weight, expected)
        assert torch.equal(before.attn.qkv.weight, after.attn.qkv.weight)
    initialise(first, "xavier", torch.Generator().manual_seed(9))
    for weight in (first.blocks[0].mlp.fc1.weight, first.patch_embed.proj.weight.flatten(1)):
        assert weight.std().item() == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.05)


def test_images_need_not_be_square():
    config = PretrainConfig(
        data=DataConfig(image_px=(32, 48)), encoder=EncoderConfig(arch="32x2x2", patch_px=4)
    )
    assert config.grid == (8, 12)
    encoder = build_encoder(config.encoder, config.data.image_size, torch.Generator())
    assert encoder(torch.randn(2, 3, 32, 48)).shape == (2, 96, 32)
    table = encoder.pos_embed.view(8, 12, 32)
    assert (table[:, 3] == table[0, 3]).all(-1).sum() == 1  # rows differ
    torch.testing.assert_close(table[:, 3, :16], table[:1, 3, :16].expand(8, -1))
    torch.testing.assert_close(table[3, :, 16:], table[3, :1, 16:].expand(12, -1))


SMALL = ["data.batch_size=4", "optimization.lr=1e-4", "masks.num_targets=4"]


def small_step(model, masks):
    [(predicted, target)] = model(torch.ones(4, 3, 32, 32).cumsum(-1) / 32, [masks])
    LOSSES["smooth_l1"](predicted, target).backward()
    return predicted, model.encoder.blocks[0].attn.qkv.weight.grad


def test_recomputing_blocks_changes_nothing_and_keeps_less():
    config = load_recipe("cifar10", SMALL)
    [masks] = batch_masks(config, 0)
    results, sizes = [], []
    for recompute in (False, True):
        model, kept = build_ijepa(config), {}
        if recompute:
            model.encoder.grad_checkpointing = model.predictor.grad_checkpointing = True

        def note(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            results.append(small_step(model, masks))
        sizes.append(sum(kept.values()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.slow
def test_compiled_blocks_compute_what_plain_ones_do():
    config = load_recipe("cifar10", SMALL)
    torch._dynamo.reset()
    plain, compiled = build_ijepa(config), build_ijepa(config)
    compile_blocks((compiled.encoder, compiled.target_encoder), compiled.predictor, "aot_eager")
    for step in range(4):  # masks of several lengths
        [masks] = batch_masks(config, step)
        for ours, theirs in zip(small_step(compiled, masks), small_step(plain, masks), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["vit_enormous", "128x4", "130x4x4", "126x4x4", "0x1x1"])
def test_an_impossible_architecture_is_refused(name):
    with pytest.raises(IjepaError, match="rchitecture"):
        architecture(name)


def test_a_predictor_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(IjepaError, match=r"predictor\.dim 16"):
        small_predictor("48x2x3", depth=1)
