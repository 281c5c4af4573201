"""Training in bfloat16 stays close to training in float32: by how much stands here."""

import pytest
import torch
import torch.nn.functional as F

from ijepa.distributed import uses_bf16
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.model import build_ijepa
from ijepa.jepa.step import Trainer
from ijepa.recipes import load_recipe

STEPS = 30
TINY = ["encoder.arch=64x3x4", "predictor.dim=32", "predictor.depth=2", "data.batch_size=16"]


def config_of(*settings):
    return load_recipe("cifar10", [*TINY, "masks.group_size=16", *settings])


def images_of(step):
    generator = torch.Generator().manual_seed(step)
    coarse = torch.randn(16, 3, 8, 8, generator=generator)
    return F.interpolate(coarse, scale_factor=4, mode="bilinear")


def losses_of(config):
    trainer = Trainer(build_ijepa(config), config.optimization, STEPS // 5)
    return torch.stack(
        [
            trainer.step(step, images_of(step), batch_masks(config, step)).loss
            for step in range(STEPS)
        ]
    )


@pytest.fixture(scope="module")
def exact():
    return losses_of(config_of("optimization.precision=fp32"))


@pytest.mark.parametrize("teacher", ["bf16", "mixed"])
def test_losses_in_bfloat16_are_within_two_percent(exact, teacher):
    config = config_of("optimization.precision=bf16", f"optimization.teacher={teacher}")
    found = losses_of(config)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
    assert not torch.equal(found, exact)
    assert exact[-1] < 0.8 * exact[0]


def test_targets_of_a_teacher_in_bfloat16_point_where_those_in_float32_do():
    config = config_of("encoder.arch=vit_tiny", "predictor.dim=48")
    model, images = build_ijepa(config), images_of(0)
    [masks] = batch_masks(config, 0)
    [(_, exact)] = model(images, [masks])
    model.keep_bf16_teacher()
    with torch.autocast("cpu", torch.bfloat16):
        [(_, found)] = model(images, [masks])
    assert found.dtype == torch.bfloat16
    assert F.cosine_similarity(found.float(), exact, dim=-1).min() > 0.999


def test_the_teachers_copy_follows_the_average_and_stays_out_of_the_state_dict():
    config = config_of("optimization.precision=bf16")
    model = build_ijepa(config)
    names = set(model.state_dict())
    trainer = Trainer(model, config.optimization, 10)
    for step in range(3):
        trainer.step(step, images_of(step), batch_masks(config, step))
    assert model.teacher is not model.target_encoder
    assert set(model.state_dict()) == names
    pairs = zip(model.teacher.parameters(), model.target_encoder.parameters(), strict=True)
    for copied, average in pairs:
        assert average.dtype == torch.float32
        assert torch.equal(copied, average.bfloat16())


@pytest.mark.parametrize(
    "settings",
    [
        ["optimization.precision=fp32"],
        ["optimization.precision=bf16", "optimization.teacher=mixed"],
        ["optimization.precision=bf16", "targets.space=pixels"],
    ],
)
def test_a_teacher_without_use_for_a_copy_has_none(settings):
    config = config_of(*settings)
    model = build_ijepa(config)
    Trainer(model, config.optimization, 10)
    assert model.teacher is model.target_encoder


def test_a_gpu_that_only_emulates_bf16_computes_in_fp32_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    chosen = [uses_bf16(name, torch.device("cuda")) for name in ("auto", "fp32", "bf16")]
    assert chosen == [False, False, True]
