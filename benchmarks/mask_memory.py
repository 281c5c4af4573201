"""Memory of training when masks differ in every step: products of ours against torch's.

    python benchmarks/mask_memory.py [--steps 200]

Each side trains a ViT-T/16 at 224 pixels, batches of 8, in a process of its own; `lengths` counts
the pairs of context and target lengths that it met. Where ours are torch's, both are equal.
"""

import argparse
import resource
import subprocess
import sys

import numpy as np
import torch
from timing import emit

from ijepa.compute import computing, pick_linear
from ijepa.config import DataConfig, EncoderConfig, PredictorConfig, PretrainConfig
from ijepa.jepa.masks import sample_masks
from ijepa.jepa.model import build_ijepa
from ijepa.jepa.step import Trainer

BATCH = 8
CONFIG = PretrainConfig(
    data=DataConfig(image_px=224, batch_size=BATCH),
    encoder=EncoderConfig(arch="vit_tiny", patch_px=16),
    predictor=PredictorConfig(dim=96, depth=6),
)


def main() -> None:
    """Both sides, or one of them."""
    parser = argparse.ArgumentParser(description="Peak memory of training with new masks a step.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--side", choices=["ours", "plain"], help="one alone: prints its numbers")
    arguments = parser.parse_args()
    if arguments.side:
        print(*_peak(arguments.side, arguments.steps))
        return
    peaks = {}
    for side in ("plain", "ours"):
        command = [sys.executable, __file__, "--side", side, "--steps", str(arguments.steps)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[side], lengths = map(int, answer.split())
    emit(
        "mask_memory",
        model=f"vit_tiny/16@224, batch {BATCH}, {arguments.steps} steps",
        lengths=lengths,
        peak_mb=peaks["ours"],
        plain_peak_mb=peaks["plain"],
        ratio=peaks["ours"] / peaks["plain"],
    )


def _peak(side: str, steps: int) -> tuple[int, int]:
    """MB, and how many lengths."""
    cpu = torch.device("cpu")
    kernel = "torch" if side == "plain" else pick_linear(cpu, BATCH * 196, 192)
    trainer = Trainer(build_ijepa(CONFIG), CONFIG.optimization, steps)
    drawn = CONFIG.masks.model_copy(update={"group_size": BATCH})
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    lengths = set()
    for step in range(steps):
        masks = sample_masks(CONFIG.grid, BATCH, drawn, rng)
        lengths |= {(group.context.shape[1], group.targets.shape[2]) for group in masks}
        with computing(cpu, linear=kernel):
            trainer.step(step, torch.randn(BATCH, 3, 224, 224, generator=generator), masks)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, len(lengths)


if __name__ == "__main__":
    main()
