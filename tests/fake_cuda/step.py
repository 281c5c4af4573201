"""Kernels, bytes and predicted time of a training step on an H100.

    python -m tests.fake_cuda step --name H --batch 128 [--plain] [--json]

Prints what the GPU does, what the host needs to launch it, and what makes the host wait. `--plain`
counts the same mathematics written plainly (`benchmarks/plain_training.py`).
"""

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ijepa.config import PretrainConfig
from ijepa.jepa.flops import PEAK_TFLOPS, step_flops
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.step import Trainer

from .kernels import HOST_SECONDS, Kernel, recorded
from .lint import lint
from .steps import empty_masks, ijepa_on_gpu, images_on_gpu, sized_config
from .tensors import fake_tensors

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def training_step(config: PretrainConfig, *, plain: bool = False) -> Callable[[int], object]:
    """A function of a step's number that takes it, on images and masks of the run's first batch."""
    model = ijepa_on_gpu(config)
    images = images_on_gpu(config)
    masks = [empty_masks(drawn) for drawn in batch_masks(config, 0)]
    if not plain:
        trainer = Trainer(model, config.optimization, 1000)
        return lambda step: trainer.step(step, images, masks)
    sys.path.append(str(BENCHMARKS))
    reference = importlib.import_module("plain_training").PlainTrainer(
        model, config.optimization, 1000
    )
    assert len(masks) == 1, "the plain step takes one group of masks"
    return lambda step: reference.step(step, images, masks[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step does on an H100.")
    parser.add_argument("--name", default="S", help="S, B, L, H or recipe:NAME")
    parser.add_argument("--batch", type=int, help="images of a step; 128, or the recipe's")
    parser.add_argument("--plain", action="store_true", help="the plain reference instead of ours")
    parser.add_argument("--json", action="store_true", help="one line for machines")
    asked = parser.parse_args()
    config = sized_config(asked.name, asked.batch)
    with fake_tensors():
        step = training_step(config, plain=asked.plain)
        step(0)  # makes the optimizer's state
        kernels = recorded(lambda: step(1))
        findings = lint(lambda: step(2))
    totals = _totals(config, kernels) | {"waits": len(findings)}
    if asked.json:
        print(json.dumps({"name": asked.name, "plain": asked.plain, **totals}))
        return
    print(f"{asked.name}{', plain' if asked.plain else ''}, batch {config.data.batch_size}:")
    for name, value in totals.items():
        print(
            f"  {name:24}{value:10,.2f}" if isinstance(value, float) else f"  {name:24}{value:10,}"
        )
    for finding in findings:
        print(f"  waits: {finding.what} ({finding.where})")
    _show_kinds(kernels)


def _totals(config: PretrainConfig, kernels: list[Kernel]) -> dict[str, float]:
    groups = batch_masks(config, 0)
    images = config.data.batch_size
    flops = sum(
        sum(step_flops(config, g.context.shape[1], g.targets.shape[2])) * len(g.context)
        for g in groups
    )
    seconds, launches = sum(k.seconds for k in kernels), sum(k.launches for k in kernels)
    return {
        "kernels": launches,
        "gigabytes": sum(k.num_bytes for k in kernels) / 1e9,
        "ms_on_the_gpu": 1e3 * seconds,
        "ms_to_launch": 1e3 * launches * HOST_SECONDS,
        "images_per_second": images / seconds,
        "model_flops_utilisation": flops / seconds / (PEAK_TFLOPS["H100"] * 1e12),
    }


def _show_kinds(kernels: list[Kernel]) -> None:
    seconds: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for kernel in kernels:
        name = kernel.kind if kernel.kind != "other" else f"other: {kernel.name}"
        seconds[name] += kernel.seconds
        launches[name] += kernel.launches
    for name, spent in seconds.most_common(12):
        print(f"    {name:36}{launches[name]:6} kernels {1e3 * spent:8.2f} ms")
