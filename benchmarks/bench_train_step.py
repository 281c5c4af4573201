"""Train step: ours against the same mathematics written plainly, from equal weights.

    python benchmarks/bench_train_step.py [NAME ...] [--compile] [--profile]

NAME is one of `SIZES`; without one, those that suit the device. --compile compiles ours, as
`ijepa pretrain --compile` does; --profile says which kinds of operations our step spends time on.
On a GPU, `flops_utilisation` counts the products of matrices that the mathematics asks for.
"""

import argparse
import copy
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from plain_training import PlainTrainer
from timing import emit, medians
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ijepa.config import DataConfig, EncoderConfig, PredictorConfig, PretrainConfig
from ijepa.method.cost import step_flops, utilisation
from ijepa.method.jepa import IJepa, build_ijepa
from ijepa.method.masking import Masks, sample_masks
from ijepa.method.training import Trainer
from ijepa.method.vit import compile_blocks

ON_GPU = torch.cuda.is_available()
PROFILED_STEPS = 3


class Size(NamedTuple):
    """One benchmark; batches for a GPU and for a CPU, on which the largest does not fit twice."""

    arch: str
    patch_px: int
    image_px: int
    predictor_dim: int
    predictor_depth: int
    gpu_batch: int
    cpu_batch: int


SIZES = {
    "T/8": Size("vit_tiny", 8, 96, 384, 6, 256, 16),
    "T/8-narrow": Size("vit_tiny", 8, 96, 96, 6, 256, 16),
    "S/16": Size("vit_small", 16, 224, 384, 6, 256, 8),
    "B/16": Size("vit_base", 16, 224, 384, 6, 256, 4),
    "L/16": Size("vit_large", 16, 224, 384, 12, 128, 2),
    "H/14": Size("vit_huge", 14, 224, 384, 12, 64, 1),
}
USUAL = ("S/16", "B/16", "L/16", "H/14") if ON_GPU else ("T/8", "T/8-narrow", "S/16", "B/16")
KINDS = {  # of operations, by what their names hold; the first that fits
    "products of matrices": "mm|gemm|linear|nvjet|cutlass(?!.*fmha)|matmul",
    "attention": "attention|fmha|flash|softmax",
    "norms": "norm",
    "GELU": "gelu",
    "optimizer and EMA": "adam|foreach|lerp|multi_tensor",
    "patch embedding": "conv",
    "copies, gathers, sums": "copy|cat|gather|index|embedding|repeat|add|sum|fill|zero|scatter|mul",
}


def compare(size: Size, *, compiled: bool, profiled: bool) -> None:
    """Time both, having seen that their first losses agree."""
    batch = size.gpu_batch if ON_GPU else size.cpu_batch
    config = PretrainConfig(
        data=DataConfig(image_px=size.image_px, batch_size=batch),
        encoder=EncoderConfig(arch=size.arch, patch_px=size.patch_px),
        predictor=PredictorConfig(dim=size.predictor_dim, depth=size.predictor_depth),
    )
    device = torch.device("cuda" if ON_GPU else "cpu")
    model = build_ijepa(config).to(device)
    plain = PlainTrainer(copy.deepcopy(model), config.optimization, 1000)
    ours = Trainer(model, config.optimization, 1000)
    if compiled:
        _compile(model)
    images = torch.randn(batch, 3, size.image_px, size.image_px, device=device)
    masks = _masks(config, batch).to(device)
    losses = float(ours.step(0, images, [masks]).loss), float(plain.step(0, images, masks))
    assert abs(losses[0] - losses[1]) < (1e-2 if ON_GPU else 1e-5) * losses[1], losses
    ours_seconds, plain_seconds = medians(
        lambda: ours.step(0, images, [masks]), lambda: plain.step(0, images, masks), rounds=9
    )
    flops = step_flops(config, masks.context.shape[1], masks.targets.shape[2]).total
    tflops = flops * batch / ours_seconds / 1e12
    share = utilisation(tflops, torch.cuda.get_device_name()) if ON_GPU else None
    emit(
        "train_step",
        model=f"{size.arch}/{size.patch_px}@{size.image_px}, batch {batch}, "
        f"predictor {size.predictor_dim}x{size.predictor_depth}",
        compiled=str(compiled),
        images_per_second=batch / ours_seconds,
        plain_images_per_second=batch / plain_seconds,
        ratio=plain_seconds / ours_seconds,
        tflops=tflops,
        **({} if share is None else {"flops_utilisation": share}),
        loss=losses[0],
        plain_loss=losses[1],
    )
    if profiled:
        _say_where_time_goes(ours, images, masks)


def _compile(model: IJepa) -> None:
    compile_blocks((model.encoder, model.target_encoder), model.predictor)


def _masks(config: PretrainConfig, batch: int) -> Masks:
    group = config.masks.model_copy(update={"group_size": batch})
    [masks] = sample_masks(config.grid, batch, group, np.random.default_rng(0))
    return masks


def _say_where_time_goes(ours: Trainer, images: Tensor, masks: Masks) -> None:
    activity = ProfilerActivity.CUDA if ON_GPU else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(PROFILED_STEPS):
            ours.step(0, images, [masks])
        if ON_GPU:
            torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        time = event.self_device_time_total if ON_GPU else event.self_cpu_time_total
        spent[_kind(event.key)] += time
    whole = sum(spent.values())
    emit("train_step_profile", **{kind: time / whole for kind, time in spent.most_common()})


def _kind(operation: str) -> str:
    fits = (kind for kind, pattern in KINDS.items() if re.search(pattern, operation.lower()))
    return next(fits, "other")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train step against a plain one.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SIZES))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.names or USUAL:
        compare(SIZES[name], compiled=arguments.compile, profiled=arguments.profile)
