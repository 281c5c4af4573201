"""Apple's GPU: chosen where it is, and spared what it cannot do. Nothing is computed on it here."""

import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_cuda.claims import Pictures
from fake_cuda.tensors import OperationMode, fake_tensors
from runs import start_as
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.utils._pytree import tree_leaves

from ijepa.config import DataConfig, FinetuneConfig, Runtime
from ijepa.data.loader import CachedCropBatches, StepPlan
from ijepa.distributed import moved, pick_device, uses_bf16
from ijepa.encoders.base import Encoder
from ijepa.encoders.pooling import PATCH_AVERAGE, token_pool
from ijepa.errors import IjepaError
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.model import build_ijepa
from ijepa.progress import silent
from ijepa.provenance import UNKNOWN
from ijepa.recipes import load_recipe
from ijepa.train.classifier import Classifier
from ijepa.train.finetuning import FinetuneTask, LabelledImages
from ijepa.train.loop import ON_CPU
from ijepa.train.pretraining import PretrainTask
from ijepa.train.watch import Watch

MPS = torch.device("mps", 0)
SMALL = (
    "encoder.arch=32x2x2", "predictor.dim=16", "predictor.depth=1", "data.batch_size=8",
    "watch.num_images=8",
)  # fmt: skip
RUN_ON_MPS = Runtime(device="mps:0", workers=0)


class _AppleGpu(OperationMode):
    """Refuses what torch cannot do on Apple's GPU, or does there without waiting for the end."""

    def operation(self, func, args, kwargs):
        name, found = func._schema.name, func(*args, **kwargs)
        theirs = [one for one in tree_leaves((args, kwargs, found)) if torch.is_tensor(one)]
        theirs = [one for one in theirs if one.device.type == "mps"]
        assert all(one.dtype != torch.float64 for one in theirs), name
        assert not (theirs and ("linalg_svd" in name or "linalg_eig" in name)), name
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        assert not (theirs and given.get("non_blocking")), name
        assert not (theirs and "pin_memory" in name), name
        return found


GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::DeviceGuardImplRegistrar one(
    c10::DeviceType::MPS, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::MPS>());
"""


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    """Lets this build of torch have tensors on Apple's GPU."""
    if shutil.which("g++") is None:
        pytest.skip("a device that is not there needs g++")
    folder, root = tmp_path_factory.mktemp("guard"), Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(GUARD)
    places = [f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10"]
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "guard.cpp", *places, "-o", "guard.so"]
    subprocess.run(command, cwd=folder, check=True)
    torch.ops.load_library(folder / "guard.so")


@pytest.fixture
def apple(monkeypatch, guard):
    """A machine with one, of which tensors have shapes and dtypes but no values."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    # Attention and gradients exist in Apple's builds alone.
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda query, *_: torch.zeros_like(query)
    )
    with fake_tensors(), _AppleGpu(), torch.no_grad():
        yield


def step_of(task, inputs, monkeypatch):
    """The record of a step, all gradients being there."""
    trained = [one for group in task.optimizer.param_groups for one in group["params"]]

    def backward(*_):
        for one in trained:
            one.grad = torch.zeros_like(one)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    record = task.step(0, inputs)
    assert on_mps([record["loss"], *trained])
    return record


def on_mps(values):
    return all(one.device == MPS for one in values)


@pytest.mark.parametrize(
    ("cuda", "mps", "processes", "found"),
    [
        (True, True, 1, "cuda:0"),
        (False, True, 1, "mps"),
        (False, True, 2, "cpu"),
        (False, False, 1, "cpu"),
    ],
)
def test_auto_takes_cuda_then_apples_gpu_then_the_cpu(monkeypatch, cuda, mps, processes, found):
    start_as(monkeypatch, 0, processes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(found)
    assert uses_bf16("auto", pick_device("auto")) == cuda
    if not mps:
        with pytest.raises(IjepaError, match="There is no device mps here; use auto, cpu"):
            pick_device("mps")


@pytest.mark.usefixtures("apple")
def test_the_machine_refuses_what_an_apple_gpu_cannot_do():
    on_gpu = torch.ones(3).to(MPS)
    for wrong in (
        on_gpu.double,
        partial(torch.ones(3).to, MPS, non_blocking=True),
        partial(torch.linalg.svdvals, torch.ones(3, 3).to(MPS)),
    ):
        with pytest.raises(AssertionError, match="aten::"):
            wrong()
    assert moved(torch.ones(3), MPS).device == MPS


@pytest.mark.slow
@pytest.mark.usefixtures("apple")
def test_pretraining_health_checks_and_features_do_nothing_that_it_cannot(monkeypatch):
    config, pictures = load_recipe("cifar10", SMALL), Pictures(16, 40)
    model = build_ijepa(config).to(MPS)
    samples = [pictures.read_sample(number) for number in range(config.watch.num_images)]
    numbers = Watch(config, samples, MPS).check(model)
    assert {"rankme", "lidar", "neighbour_accuracy"} <= set(numbers)
    images = torch.zeros(4, 3, *config.data.image_size).to(MPS)
    vit = model.target_encoder
    frozen = Encoder(vit, token_pool(vit, PATCH_AVERAGE), config.data, name="x", provenance=UNKNOWN)
    assert on_mps([frozen.features(images), frozen.features(images, bf16=True)])
    plan = StepPlan(16, config.data, 0)
    batch = CachedCropBatches(pictures, plan, MPS, 0, silent)[0]
    task = PretrainTask(config, pictures, RUN_ON_MPS)
    inputs = images, masks, groups = task.prepare(batch)
    assert on_mps([images, *(tensor for group in masks for tensor in group)])
    assert len(groups) == len(batch_masks(config, 0))
    assert "grad_norm" in step_of(task, inputs, monkeypatch)
    weights = get_model_state_dict(task.model, options=ON_CPU)  # as checkpoints fetch them
    assert {tensor.device.type for tensor in weights.values()} == {"cpu"}


@pytest.mark.usefixtures("apple")
def test_fine_tuning_steps_watches_and_scores_there(monkeypatch):
    config = FinetuneConfig(encoder="fake", epochs=1, batch_size=8, mixup=0.8)
    vit = build_ijepa(load_recipe("cifar10", SMALL)).encoder
    model = Classifier(vit, 4, 0.1, torch.Generator().manual_seed(0))
    pictures, numbers = Pictures(16, 40), np.arange(16)
    keys = [str(number) for number in numbers]
    parts = [LabelledImages(pictures, n, n % 4, keys) for n in (numbers[:8], numbers[8:])]
    data = DataConfig(image_px=32, batch_size=8)
    task = FinetuneTask(model, parts, config, data, RUN_ON_MPS)
    [batch] = task.batches(range(1))
    inputs = task.prepare(batch)
    assert on_mps(inputs)
    step_of(task, inputs, monkeypatch)
    assert set(task.watch(1)) == {"held_out_loss", "held_out_accuracy"}
    assert len(task.predictions(parts[1], silent)) == 8
