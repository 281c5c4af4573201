"""Attention and PCA of patch tokens: exact as numbers, and seen without side effects."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from runs import CPU
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from ijepa.config import AttentionConfig, PcaConfig, Runtime
from ijepa.encoders.base import Encoder
from ijepa.encoders.pooling import PATCH_AVERAGE, token_pool
from ijepa.encoders.spec import load_encoder
from ijepa.errors import IjepaError
from ijepa.figures.draw import HIDDEN
from ijepa.figures.pca import patch_colours
from ijepa.provenance import UNKNOWN
from ijepa.visualize import patches, visualize

RANDOM = "random:32x2x2/8@32"


def with_class_token() -> VisionTransformer:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2,
        num_classes=0,
    ).eval()  # fmt: skip


def with_relative_positions() -> Beit:
    torch.manual_seed(0)
    return Beit(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0,
        use_abs_pos_emb=False, use_shared_rel_pos_bias=True, init_values=0.5,
    ).eval()  # fmt: skip


def without_class_token() -> VisionTransformer:
    return load_encoder(RANDOM).vit


def encoder_of(vit) -> Encoder:
    data, pooled = load_encoder(RANDOM).data, token_pool(vit, PATCH_AVERAGE)
    return Encoder(vit, pooled, data, name="timm", provenance=UNKNOWN)


NETWORKS = pytest.mark.parametrize("network", [with_class_token(), without_class_token()])
ALL_NETWORKS = pytest.mark.parametrize(
    "network", [with_class_token(), without_class_token(), with_relative_positions()]
)


def some_images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@ALL_NETWORKS
@pytest.mark.parametrize("layer", [0, -1])
def test_every_query_shares_out_all_of_its_attention(network, layer):
    heads = patches.attention_of(network, some_images(), layer)
    tokens = 16 + network.num_prefix_tokens
    assert heads.shape == (3, 2, tokens, tokens)
    torch.testing.assert_close(heads.sum(-1), torch.ones(3, 2, tokens))
    assert heads.min() >= 0


@NETWORKS
def test_attention_is_softmax_of_queries_and_keys(network):
    first = network.blocks[0]
    entering = []
    hook = first.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    found = patches.attention_of(network, some_images(), 0)
    hook.remove()
    with torch.no_grad():
        qkv = first.attn.qkv(first.norm1(entering[0])).unflatten(-1, (3, 2, 16))
    query, key = qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1].transpose(1, 2)
    torch.testing.assert_close(found, (query @ key.mT / 4).softmax(-1))


@ALL_NETWORKS
def test_looking_changes_neither_features_nor_the_network(network):
    images = some_images()
    with torch.no_grad():
        before = network(images)
        patches.attention_of(network, images, 0)
        assert torch.equal(network(images), before)
    with pytest.raises(RuntimeError):
        patches.attention_of(network, images[:, :2], 0)
    assert all(block.attn.fused_attn for block in network.blocks)
    assert not any(block.attn.attn_drop._forward_hooks for block in network.blocks)


def test_the_mean_query_is_the_mean_of_the_patches_rows_without_the_class_token():
    network, rows = with_class_token(), torch.randn(17, 17)
    torch.testing.assert_close(rows[patches.query_of("mean", network, "timm")[2]], rows[1:])
    torch.testing.assert_close(rows[patches.query_of("class", network, "timm")[2]], rows[:1])
    torch.testing.assert_close(
        rows[patches.query_of("1,2", network, "timm")[2]], rows[1 + 6 : 1 + 7]
    )
    assert patches.query_of("center", network, "timm")[1] == (2, 2)


@pytest.mark.parametrize(
    ("query", "message"),
    [("4,0", "outside the 4x4 patches"), ("class", "no class token"), ("left", "no query 'left'")],
)
def test_queries_that_there_are_not_are_refused(query, message):
    with pytest.raises(IjepaError, match=message):
        patches.query_of(query, without_class_token(), RANDOM)


@NETWORKS
def test_patch_tokens_are_the_networks_own_without_its_class_token(network):
    images, encoder = some_images(), load_encoder(RANDOM)
    whole = network.forward_features(images).detach()[:, network.num_prefix_tokens :]
    torch.testing.assert_close(encoder_of(network).patch_tokens(images, 1), whole)
    for layer in (0, 1):  # averaged, they are the features that extract stores
        pooled = encoder.features(images, 2)[:, layer]
        torch.testing.assert_close(encoder.patch_tokens(images, layer).mean(1), pooled)


def squares() -> np.ndarray:
    """Tokens of four images: a bright square of 4x4 in the middle of 8x8 patches, and noise."""
    tokens = np.random.default_rng(0).normal(0, 0.1, (4, 8, 8, 6))
    tokens[:, 2:6, 2:6] += np.array([5, 0, -3, 0, 0, 1])
    return tokens


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_what_stands_in_the_middle(sign):
    wanted = np.zeros((4, 8, 8), dtype=bool)
    wanted[:, 2:6, 2:6] = True
    colours, _ = patch_colours(sign * squares(), 0.5)
    np.testing.assert_array_equal((colours != HIDDEN).any(axis=-1), wanted)
    with pytest.raises(IjepaError, match="choose a lower one"):
        patch_colours(squares()[:1, :3, :3], 0.999)
    for few in (squares()[:1, :1, :2], squares()[..., :2], squares()[:1, :1, :1]):
        for threshold in (None, 0.5):
            with pytest.raises(IjepaError, match="no three components"):
                patch_colours(few, threshold)


def test_alike_tokens_have_alike_colours_in_every_image():
    colours = patch_colours(squares())[0].astype(int)
    inside, outside = colours[:, 2:6, 2:6, 0], np.delete(colours[:, 0, :, 0], 0, axis=1)
    assert abs(inside.mean() - outside.mean()) > 150
    assert inside.std() < 30


def test_an_overlay_is_darkest_where_attention_is_largest_but_for_the_query_itself():
    shares = np.array([[0.9, 0.04], [0.05, 0.01]], dtype=np.float32)
    assert patches.largest_elsewhere(shares, None) == pytest.approx(0.9)
    assert patches.largest_elsewhere(shares, (0, 0)) == pytest.approx(0.05)
    white = np.full((40, 40, 3), 255, dtype=np.uint8)
    map_ = patches.overlay(white, shares - 0.01, 0.04).sum(axis=2)
    assert map_[30, 10] == map_.min() < map_[10, 30] < map_[30, 30] == map_.max() == 3 * 255


def test_attention_is_drawn_once_and_to_the_byte(run, shards, tmp_path):
    config = AttentionConfig(encoder=(str(run), RANDOM), images=2)
    out = tmp_path / "a.png"
    picture = visualize(out, config, shards, runtime=CPU)
    assert (picture.cached, picture.images, len(picture.encoders)) == (False, 2, 2)
    assert len(set(picture.keys)) == 2
    assert visualize(out, config, shards, runtime=CPU).cached
    before = out.read_bytes()
    visualize(out, config, shards, runtime=Runtime(device="cpu", force=True))
    assert out.read_bytes() == before


def test_an_svg_names_encoder_layer_and_data(shards, tmp_path):
    for config in (AttentionConfig(encoder=(RANDOM,)), PcaConfig(encoder=(RANDOM,), layer=(0, -1))):
        out = tmp_path / f"{type(config).__name__}.svg"
        text = visualize(out, config, shards, runtime=CPU).out.read_text()
        shown = " ".join(re.findall(r"<text [^>]*>(.*?)</text>", text))
        assert all(words in shown for words in (RANDOM, "block 1", "split val"))


def test_pca_is_drawn_for_every_encoder_and_layer(run, shards, tmp_path):
    choices = {"images": 2, "layer": (0, -1), "batch": 16, "foreground": 0.3}
    config, out = PcaConfig(encoder=(str(run), f"random:{run}"), **choices), tmp_path / "p.png"
    picture = visualize(out, config, shards, runtime=CPU)
    assert len(picture.figures) == 4
    assert all(0 < share <= 1 for share in picture.figures.values())
    assert Image.open(out).width == 2 * (5 * 138 + 10)
    assert visualize(out, config, shards, runtime=CPU).cached


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"layer": 2}, "no layer 2"),
        ({"split": "test"}, "no split 'test'"),
        ({"keys": ("nobody",)}, "no image 'nobody'"),
        ({"images": 64, "split": "few"}, "no split 'few'"),
        ({"encoder": ("pixels",)}, "pixels@16 is no Vision Transformer"),
        ({"encoder": ("nothing",)}, "no encoder 'nothing'"),
    ],
)
def test_what_cannot_be_drawn_leaves_no_picture(shards, tmp_path, choices, message):
    config = AttentionConfig(**({"encoder": (RANDOM,)} | choices))
    with pytest.raises(IjepaError, match=message):
        visualize(tmp_path / "a.png", config, shards, runtime=CPU)
    assert not list(tmp_path.iterdir())


def test_the_command_line_draws_and_says_what(ijepa, shards, tmp_path):
    out = tmp_path / "a.png"
    words = ["visualize", "attention", "--encoder", RANDOM, "--data", shards, "--out", out]
    words += ["--query", "mean", "--query", "0,3", "--images", 1, "--json"]
    code, printed, _ = ijepa(*words)
    assert code == 0
    shown = json.loads(printed)
    assert (shown["cached"], shown["images"]) == (False, 1)
    assert out.exists()
    record = json.loads((tmp_path / "a.png.stage.json").read_text())
    assert record["command"].startswith("ijepa visualize attention --encoder random:32x2x2")
