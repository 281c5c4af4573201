"""Attentive heads: V-JEPA's own computation, its schedules, and what an average cannot learn."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from arrays import header_of, image_ids, labelled, write_features
from torch import nn
from torch.nn.functional import gelu

from ijepa.config import ProbeConfig, Runtime
from ijepa.errors import IjepaError
from ijepa.probe import probe
from ijepa.probes.arrays import LabelledRows, ProbeRequest
from ijepa.probes.heads import AttentiveHead, AttentiveHeads
from ijepa.probes.linear import choose_and_train
from ijepa.probes.protocols import ATTENTIVE_PROTOCOLS, AttentiveProtocol, AttentiveSettings

CPU = torch.device("cpu")
GRID, DIM = 16, 24
SHORT = AttentiveProtocol(
    heads=(AttentiveSettings(3e-3, 1e-3, 1e-3), AttentiveSettings(1e-5, 1e-3, 1e-3)),
    source="test", num_heads=4, batch=32, epochs=6,
)  # fmt: skip


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(ATTENTIVE_PROTOCOLS, "ijepa", SHORT)


def shaken(head, seed=0):
    """Weights that no initialisation would give, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return head


@torch.no_grad()
def by_torch(head, tokens):
    """V-JEPA's head by torch's own multi-head attention; every key and value is projected."""
    dim = tokens.shape[2]
    theirs = nn.MultiheadAttention(dim, head.num_heads, batch_first=True)
    key, value = head.kv.weight.chunk(2)
    theirs.in_proj_weight.copy_(torch.cat([head.q.weight, key, value]))
    theirs.in_proj_bias.copy_(torch.cat([head.q.bias, *head.kv.bias.chunk(2)]))
    identity = torch.eye(dim), torch.zeros(dim)
    weight, bias = (head.proj.weight, head.proj.bias) if hasattr(head.proj, "bias") else identity
    theirs.out_proj.weight.copy_(weight)
    theirs.out_proj.bias.copy_(bias)
    query, seen = head.query.expand(len(tokens), -1, -1), head.norm1(tokens)
    query = query + theirs(query, seen, seen)[0]
    query = query + head.mlp.fc2(gelu(head.mlp.fc1(head.norm2(query))))
    return head.linear(query[:, 0])


@pytest.mark.parametrize("projects", [True, False])
def test_a_head_computes_what_torchs_attention_does_with_its_weights(projects):
    protocol = replace(ATTENTIVE_PROTOCOLS["vjepa"], projects=projects, num_heads=12)
    head = shaken(AttentiveHead(protocol, DIM, 5))
    assert head.num_heads == 12
    tokens = torch.randn(3, GRID, DIM, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(tokens), by_torch(head, tokens), rtol=1e-4, atol=1e-5)


def test_a_head_of_four_blocks_is_the_pooler_of_vjepa2_in_transformers():
    vjepa2 = pytest.importorskip("transformers.models.vjepa2")  # of extra hf
    pooler_of = vjepa2.modeling_vjepa2.VJEPA2AttentivePooler
    config = vjepa2.VJEPA2Config(
        hidden_size=DIM, num_attention_heads=8, num_pooler_layers=3, layer_norm_eps=1e-5,
        mlp_ratio=4, attn_implementation="eager",
    )  # fmt: skip
    head = shaken(AttentiveHead(replace(ATTENTIVE_PROTOCOLS["vjepa2"], num_heads=8), DIM, 5))
    renamed = {"query_tokens": head.query, **{
        f"cross_attention_layer.{theirs}.{part}": value
        for theirs, module in (("layer_norm1", head.norm1), ("layer_norm2", head.norm2),
                               ("mlp", head.mlp), ("cross_attn.q_proj", head.q))
        for part, value in module.named_parameters()
    }}  # fmt: skip
    for part in ("weight", "bias"):
        key, value = getattr(head.kv, part).chunk(2)
        renamed[f"cross_attention_layer.cross_attn.k_proj.{part}"] = key
        renamed[f"cross_attention_layer.cross_attn.v_proj.{part}"] = value
        for number, block in enumerate(head.blocks):
            layer = f"self_attention_layers.{number}."
            three = getattr(block.attn.qkv, part).chunk(3)
            for name, one in zip("qkv", three, strict=True):
                renamed[f"{layer}self_attn.{name}_proj.{part}"] = one
            renamed[f"{layer}self_attn.out_proj.{part}"] = getattr(block.attn.proj, part)
            for ours, theirs in (("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
                renamed[f"{layer}{theirs}.{part}"] = getattr(getattr(block, ours), part)
            for fc in ("fc1", "fc2"):
                renamed[f"{layer}mlp.{fc}.{part}"] = getattr(getattr(block.mlp, fc), part)
    pooler = pooler_of(config).eval()
    pooler.load_state_dict(renamed)
    tokens = torch.randn(3, GRID, DIM, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = head.linear(pooler(tokens))
    torch.testing.assert_close(head(tokens), expected, rtol=1e-4, atol=1e-5)


def test_residual_branches_of_vjepa2_start_as_in_its_code():
    protocol = replace(ATTENTIVE_PROTOCOLS["vjepa2"], num_heads=8)
    torch.manual_seed(0)
    head = AttentiveHead(protocol, 256, 5)
    stds = [block.mlp.fc2.weight.std().item() / 0.02 for block in [*head.blocks, head]]
    assert stds == pytest.approx([2**-0.5, 4**-0.5, 6**-0.5, 6**-0.5], rel=0.02)


def test_learning_rates_and_decay_follow_the_published_schedules():
    plain = AttentiveSettings(1e-3, 1e-3, 1e-6)
    assert plain.at(0.0) == (1e-3, 1e-3)
    lr, decay = plain.at(0.5)
    assert lr == pytest.approx(5e-4)
    assert decay == pytest.approx((1e-3 + 1e-6) / 2)
    warm = ATTENTIVE_PROTOCOLS["vjepa2"].heads[1]
    rates = [warm.at(done)[0] for done in (0.0, 0.125, 0.25, 0.625)]
    assert rates == pytest.approx([2e-4, 3.5e-4, 5e-4, 2.5e-4])
    assert len(ATTENTIVE_PROTOCOLS["vjepa2"].heads) == 21


def places(images, seed, dim=DIM):
    """(rows, patches, dim) tokens: one object in one of four corners; labels say which.

    An image's tokens have positions, and the object's place in the grid is cancelled in the mean:
    each image's tokens add up to the same, so that its average says nothing about the corner.
    """
    fixed = np.random.default_rng(9)
    positions, thing = fixed.standard_normal((GRID, dim)), 2 * fixed.standard_normal(dim)
    rng = np.random.default_rng(seed)
    labels, tokens = rng.integers(4, size=images), np.tile(positions, (images, 1, 1))
    tokens[np.arange(images), 5 * labels] += thing
    tokens += 0.1 * rng.standard_normal(tokens.shape)
    tokens -= tokens.mean(1, keepdims=True)
    return tokens.astype(np.float16), labels


def on_tokens(tokens, labels):
    return LabelledRows(tokens, labels, np.arange(len(labels))[:, np.newaxis])


def test_it_learns_where_an_object_is_and_linear_heads_on_the_average_do_not(monkeypatch):
    longer = replace(SHORT, epochs=12)
    monkeypatch.setitem(ATTENTIVE_PROTOCOLS, "ijepa", longer)
    (train, numbers), (test, answers) = places(300, 0), places(200, 1)
    config = ProbeConfig(name="attentive")
    [fit] = choose_and_train(
        on_tokens(train, numbers), on_tokens(test, answers), ProbeRequest(config)
    )
    assert np.mean(fit.predictions == answers) > 0.95
    assert fit.choices["head"] == "attentive, lr 0.003, decay 0.001"
    assert fit.choices["held_out_accuracy"] > 0.9
    assert fit.best_on_test >= np.mean(fit.predictions == answers)
    assert fit.deviations == ()
    averages = (tokens.mean(1, keepdims=True, dtype=np.float32) for tokens in (train, test))
    pooled = [labelled(*pair) for pair in zip(averages, (numbers, answers), strict=True)]
    [fit] = choose_and_train(*pooled, ProbeRequest(ProbeConfig(name="linear")))
    assert np.mean(fit.predictions == answers) < 0.4  # a quarter, and four deviations


def test_shuffled_labels_are_at_chance(short):
    (train, numbers), (test, answers) = places(200, 0), places(400, 1)
    shuffled = np.random.default_rng(0).permutation(numbers)
    config = ProbeConfig(name="attentive")
    [fit] = choose_and_train(
        on_tokens(train, shuffled), on_tokens(test, answers), ProbeRequest(config)
    )
    assert np.mean(fit.predictions == answers) < 0.5


def test_parts_of_a_batch_give_the_step_of_the_whole(monkeypatch):
    tokens, labels = (torch.from_numpy(array) for array in places(30, 0))
    states = []
    for at_once in (2**24, GRID * DIM * 7):
        monkeypatch.setattr("ijepa.probes.heads.NUMBERS_AT_ONCE", at_once)
        heads = AttentiveHeads(SHORT, DIM, 4, 0, CPU)
        for _ in range(2):
            heads.step({"tokens": tokens}, labels, 0.0)
        states.append(heads)
    one, two = (heads.state_dict()["heads"][0] for heads in states)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)
    assert torch.equal(*(heads.predict({"tokens": tokens}) for heads in states))


def test_only_matrices_and_the_query_decay_where_v_jepa_says_so():
    for decays_all in (False, True):
        heads = AttentiveHeads(replace(SHORT, decays_all=decays_all), DIM, 4, 0, CPU)
        decayed = [group for group in heads._optimizers[0].param_groups if group["decays"]]
        shapes = {weight.ndim for group in decayed for weight in group["params"]}
        assert shapes == ({1, 2, 3} if decays_all else {2, 3})


def stored(path, tokens, labels, first, grid=(4, 4)):
    """A feature file of these tokens and their average; `grid` None leaves the tokens out."""
    header = header_of(path, layers=(0,), tokens=grid and (*grid, DIM))
    keys = [f"{number:04}" for number in range(first, first + len(labels))]
    return write_features(
        path, header, tokens.mean(1, keepdims=True), keys=keys, labels={"class": labels},
        image_ids=image_ids(keys), tokens=tokens if grid else None, batch_rows=50,
    )  # fmt: skip


def test_from_files_it_repeats_and_lists_what_vjepa_did_otherwise(short, tmp_path, monkeypatch):
    train = stored(tmp_path / "train.h5", *places(90, 0), 0)
    test = stored(tmp_path / "val.h5", *places(60, 1), 1000)
    pair, cpu = (train, test), Runtime(device="cpu")
    results = [
        probe(pair, [pair], tmp_path / f"{n}.json", ProbeConfig(name="attentive"), cpu).scores
        for n in range(2)
    ]
    assert results[0][0].correct == results[1][0].correct == results[0][1].correct
    assert results[0][0].p_value is None
    assert results[0][1].p_value == 1.0
    assert results[0][0].protocol == "attentive"
    heads = SHORT.heads[:1]
    vjepa = replace(ATTENTIVE_PROTOCOLS["vjepa"], heads=heads, epochs=1)
    monkeypatch.setitem(ATTENTIVE_PROTOCOLS, "vjepa", vjepa)
    config = ProbeConfig(name="attentive", protocol="vjepa")
    [score] = probe(pair, [], tmp_path / "v.json", config, cpu).scores
    assert score.protocol == "attentive-vjepa"
    said = "\n".join(score.deviations)
    for line in (
        "not on random crops, flips, AutoAugment and random erasing",
        "8 heads of attention, not 16: tokens are 24 wide",
        "batches of all 90 images, not of 1,024", "images of 32 pixels, not of 224 or 384",
    ):  # fmt: skip
        assert line in said


def test_files_without_tokens_of_another_grid_or_damaged_are_refused(short, tmp_path):
    train = stored(tmp_path / "train.h5", *places(60, 0), 0)
    plain = stored(tmp_path / "plain.h5", *places(30, 1), 1000, grid=None)
    wide = stored(tmp_path / "wide.h5", *places(30, 1), 1000, grid=(2, 8))
    out, config = tmp_path / "r.json", ProbeConfig(name="attentive")
    with pytest.raises(IjepaError, match=r"plain.h5 has no patch tokens; extract it with --tokens"):
        probe((train, plain), [], out, config)
    with pytest.raises(IjepaError, match=r"differ in tokens: \(4, 4, 24\) and \(2, 8, 24\)"):
        probe((train, wide), [], out, config)
    probe((train, plain), [], tmp_path / "k.json", ProbeConfig(name="knn"))  # needs no tokens
    with h5py.File(wide, "r+") as store:
        store["tokens"][3, 2, 1] += 1
    with pytest.raises(IjepaError, match="rows from 0 on are damaged"):
        probe((train, wide), [], out, config)
    assert not out.exists()
