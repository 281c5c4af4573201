"""The published networks and schedules, at their full size and over whole runs."""

import math

import pytest
import timm
import torch
from foreign_weights import block_shapes, vit_shapes
from hypothesis import given
from hypothesis import strategies as st

from ijepa.config import OptimizationConfig
from ijepa.encoders.formats import Networks
from ijepa.encoders.own import provenance_of
from ijepa.jepa.model import build_ijepa
from ijepa.jepa.schedules import Schedules
from ijepa.paper import TABLES, pretraining_data, pretraining_epochs
from ijepa.provenance import Provenance
from ijepa.recipes import load_recipe

# Published file -> recipe, width, depth, hidden width, patch, patches, depth of the predictor, and
# the name that timm has for it.
CHECKPOINTS = {
    "IN1K-vit.h.14-300e": (
        "in1k_vith14_ep300", 1280, 32, 5120, 14, 256, 12, "vit_huge_patch14_gap_224.in1k_ijepa"
    ),
    "IN1K-vit.h.16-448px-300e": (
        "in1k_vith16-448_ep300", 1280, 32, 5120, 16, 784, 12, "vit_huge_patch16_gap_448.in1k_ijepa"
    ),
    "IN22K-vit.h.14-900e": (
        "in22k_vith14_ep66", 1280, 32, 5120, 14, 256, 12, "vit_huge_patch14_gap_224.in22k_ijepa"
    ),
    "IN22K-vit.g.16-600e": (
        "in22k_vitg16_ep44", 1408, 40, 6144, 16, 196, 16, "vit_giant_patch16_gap_224.in22k_ijepa"
    ),
}  # fmt: skip
PREDICTOR_DIM = 384


def published_encoder(dim, depth, hidden, patch_px, patches):
    shapes = vit_shapes(dim, depth, patch_px, hidden=hidden) | {"pos_embed": (1, patches, dim)}
    del shapes["cls_token"]
    return shapes


def published_predictor(dim, depth, patches):
    return {
        "mask_token": (1, 1, PREDICTOR_DIM),
        "predictor_pos_embed": (1, patches, PREDICTOR_DIM),
        "predictor_embed.weight": (PREDICTOR_DIM, dim),
        "predictor_embed.bias": (PREDICTOR_DIM,),
        **block_shapes("predictor_blocks", depth, PREDICTOR_DIM, 4 * PREDICTOR_DIM),
        "predictor_norm.weight": (PREDICTOR_DIM,),
        "predictor_norm.bias": (PREDICTOR_DIM,),
        "predictor_proj.weight": (dim, PREDICTOR_DIM),
        "predictor_proj.bias": (dim,),
    }


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_file_of_that_name_and_network_stands_for_the_papers_row(name):
    known = Provenance(origin="published", method="I-JEPA", epochs=300 if "IN1K" in name else 66)
    config = load_recipe(CHECKPOINTS[name][0])
    found = provenance_of(Networks(f"weights/{name}.pth.tar", config, {}, known))
    rows = [row for table in TABLES for row in table.rows if row.group and row.recipe]
    assert any(
        (found.method, found.arch, found.data) == (row.method, row.arch, pretraining_data(row))
        and found.epochs in pretraining_epochs(row)
        for row in rows
    )
    renamed = Networks("weights/mine.pth.tar", config, {}, known)
    assert provenance_of(renamed).data is None
    other = known.model_copy(update={"epochs": 100})
    cut = provenance_of(Networks(f"weights/{name}.pth.tar", config, {}, other))
    assert (cut.data is None) == ("IN1K" in name)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_names_and_shapes_are_those_of_each_published_checkpoint(name):
    recipe, dim, depth, hidden, patch_px, patches, predictor_depth, timm_name = CHECKPOINTS[name]
    with torch.device("meta"):
        ours = build_ijepa(load_recipe(recipe))
        theirs = timm.create_model(timm_name, pretrained=False, num_classes=0)
    encoder = published_encoder(dim, depth, hidden, patch_px, patches)
    assert shapes(ours.encoder) == shapes(ours.target_encoder) == encoder
    assert shapes(ours.predictor) == published_predictor(dim, predictor_depth, patches)
    assert shapes(theirs) == encoder


def published_run(config, per_epoch):
    """Learning rate, weight decay, momentum of each step, by counters as the released code has."""
    total = config.epochs * per_epoch
    stretched = config.schedule_scale * config.epochs * per_epoch  # 1.9 * 9 * 10 is below 171
    warmup = int(config.warmup_epochs * per_epoch)
    for counter in range(1, total + 1):
        if counter < warmup:
            lr = config.start_lr + counter / warmup * (config.lr - config.start_lr)
        else:
            done = (counter - warmup) / max(1, int(stretched) - warmup)
            half = (1 + math.cos(math.pi * done)) / 2
            lr = max(config.final_lr, config.final_lr + half * (config.lr - config.final_lr))
        start, end = config.weight_decay, config.final_weight_decay
        decay = end + (start - end) * (1 + math.cos(math.pi * counter / int(stretched))) / 2
        low, high = config.ema
        yield (
            lr,
            max(end, decay) if end <= start else min(end, decay),
            (low + (counter - 1) * (high - low) / stretched),
        )


optimizations = st.builds(
    lambda epochs, warmup, rates, decays, scale: OptimizationConfig(
        epochs=epochs,
        warmup_epochs=warmup * epochs,
        start_lr=rates[0],
        lr=rates[1],
        final_lr=rates[0] / 100,
        weight_decay=decays[0],
        final_weight_decay=decays[1],
        schedule_scale=scale,
    ),
    st.integers(1, 20),
    st.floats(0, 0.9),
    st.tuples(st.floats(1e-6, 1e-3), st.floats(1e-3, 1e-1)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.floats(1, 2),
)


@given(optimizations, st.integers(1, 40))
def test_schedules_are_the_published_ones_over_whole_runs(config, per_epoch):
    run = Schedules(config, per_epoch)
    for step, (lr, decay, momentum) in enumerate(published_run(config, per_epoch)):
        assert run.lr(step) == pytest.approx(lr, rel=1e-9, abs=1e-15)
        assert run.weight_decay(step) == pytest.approx(decay, rel=1e-9, abs=1e-15)
        assert run.ema(step) == pytest.approx(momentum, rel=1e-12)
    assert step + 1 == run.total_steps
