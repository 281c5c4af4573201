"""Train step: ours against the same mathematics written plainly, from equal weights.

    python benchmarks/bench_train_step.py [NAME ...] [--compile] [--vary] [--profile] [--trace FILE]

NAME is one of `SIZES`; without one, those that suit the device. --compile compiles ours, as
`ijepa pretrain --compile` does; --vary draws new masks for every step, as training does, instead of
one set for all; --profile says which kinds of operations our step spends time on, and --trace keeps
what was recorded for that, for chrome://tracing.
On a CPU the two sides take turns. On a GPU each has the card to itself, in blocks of steps between
two synchronisations, and `flops_utilisation` counts the products of matrices that the mathematics
asks for.
"""

import argparse
import gc
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from plain_training import PlainTrainer
from timing import emit, medians
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ijepa.compute import computing, pick_linear
from ijepa.config import DataConfig, EncoderConfig, MultiblockMasks, PredictorConfig, PretrainConfig
from ijepa.jepa.flops import step_flops, utilisation
from ijepa.jepa.masks import Masks, batch_masks
from ijepa.jepa.model import IJepa, build_ijepa, compile_blocks
from ijepa.jepa.step import Trainer
from ijepa.jepa.vit import initialise, sincos_positions

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
WHERE = DeviceType.CUDA if ON_GPU else DeviceType.CPU  # whose time a profile counts
BLOCK_STEPS = 20  # between two synchronisations: the host may run ahead, as in training
WARMUP_STEPS = 3
FEWEST_BLOCKS, MOST_BLOCKS = 2, 5
ENOUGH_SECONDS = 3.0  # of measuring; beyond, the fewest blocks do
VARYING_MASKS = 100  # drawn before; training draws them meanwhile
PROFILED_STEPS = 3

Step = Callable[[int], Tensor]  # number of the step -> its loss, still on the device


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
    "H/14": Size("vit_huge", 14, 224, 384, 12, 128, 1),
}
USUAL = ("S/16", "B/16", "L/16", "H/14") if ON_GPU else ("T/8", "T/8-narrow", "S/16", "B/16")
KINDS = {  # of operations, by what their names hold; the first that fits
    "attention": "attention|fmha|flash|softmax",
    "optimizer and EMA": "adam|foreach|lerp|multi_tensor",
    "norms": "norm|gammabeta",
    "GELU": "gelu",
    "products of matrices": "mm|gemm|linear|nvjet|cutlass|matmul",
    "patch embedding": "conv",
    "copies, gathers, sums": "copy|cat|gather|index|embedding|repeat|add|sum|fill|zero|scatter|mul",
}


class Workload(NamedTuple):
    """What both sides compute.

    Attributes:
        config: networks, batch and schedules.
        images: (B, 3, height, width) float32, random.
        masks: one set for all steps, or several that steps take in turn; one group each.
    """

    config: PretrainConfig
    images: Tensor
    masks: list[Masks]

    @property
    def flops(self) -> float:
        """FLOPs of a step, averaged over the masks."""
        lengths = [(masks.context.shape[1], masks.targets.shape[2]) for masks in self.masks]
        return len(self.images) * statistics.fmean(
            sum(step_flops(self.config, *pair)) for pair in lengths
        )


class Measured(NamedTuple):
    """One side of a comparison.

    Attributes:
        first_loss: of step 0.
        first_seconds: that step 0 took, with all that is built or compiled for it.
        seconds: of a step, median over the blocks.
        spread: (slowest - fastest block) / median.
        peak_gb: memory of the device at its highest, in 1e9 bytes; 0 on a CPU.
    """

    first_loss: float
    first_seconds: float
    seconds: float
    spread: float
    peak_gb: float


def config_of(size: Size, batch: int) -> PretrainConfig:
    """The published settings at that size; contexts are cut over the whole batch."""
    return PretrainConfig(
        data=DataConfig(image_px=size.image_px, batch_size=batch),
        encoder=EncoderConfig(arch=size.arch, patch_px=size.patch_px),
        predictor=PredictorConfig(dim=size.predictor_dim, depth=size.predictor_depth),
        masks=MultiblockMasks(group_size=batch),
    )


def prepare(config: PretrainConfig, *, vary: bool) -> Workload:
    """Draw images and masks, and put them on the device."""
    torch.manual_seed(0)
    images = torch.randn(config.data.batch_size, 3, *config.data.image_size, device=DEVICE)
    drawn = [batch_masks(config, step) for step in range(VARYING_MASKS if vary else 1)]
    return Workload(config, images, [masks.to(DEVICE) for [masks] in drawn])


def draw_networks(config: PretrainConfig, device: torch.device) -> IJepa:
    """Networks with the weights of `build_ijepa`, drawn on `device`.

    On a CPU they are the same numbers; on a GPU equal seeds give equal numbers, in no time. So that
    two sides start alike, and need not be in memory together.
    """
    with torch.device("meta"):
        model = build_ijepa(config)
    model.to_empty(device=device)
    encoder, predictor = model.encoder, model.predictor
    positions = encoder.pos_embed, predictor.predictor_pos_embed
    for table in positions:
        fixed = sincos_positions(table.shape[-1], config.grid)
        table.data.copy_(fixed * config.encoder.position_scale)
    generator = torch.Generator(device).manual_seed(config.seed)
    initialise(encoder, config.encoder.init, generator)
    initialise(predictor, config.encoder.init, generator)
    nn.init.trunc_normal_(predictor.mask_token, std=0.02, generator=generator)
    model.target_encoder.load_state_dict(encoder.state_dict())
    return model


def our_step(
    work: Workload,
    *,
    compiled: bool = False,
    backend: str = "inductor",
    cudnn: bool | None = None,
) -> Step:
    """The product's training step on fresh networks.

    Args:
        work: what to compute.
        compiled: whether to compile the blocks, with `backend`.
        backend: of torch.compile.
        cudnn: whether attention may use cuDNN; None chooses as training does.
    """
    shapes_vary = len(work.masks) > 1 if cudnn is None else not cudnn
    model = draw_networks(work.config, DEVICE)
    trainer = Trainer(model, work.config.optimization, 1000)
    if compiled:
        compile_blocks((model.encoder, model.teacher), model.predictor, backend)
    tokens = len(work.images) * work.config.grid[0] * work.config.grid[1]
    linear = "torch" if compiled else pick_linear(DEVICE, tokens, model.encoder.embed_dim)

    def step(number: int) -> Tensor:
        masks = [work.masks[number % len(work.masks)]]
        with computing(DEVICE, linear=linear, shapes_vary=shapes_vary):
            return trainer.step(number, work.images, masks, with_norm=number % 10 == 9).loss

    return step


def plain_step(work: Workload) -> Step:
    """The plain step on fresh networks of equal weights."""
    plain = PlainTrainer(draw_networks(work.config, DEVICE), work.config.optimization, 1000)
    return lambda number: plain.step(number, work.images, work.masks[number % len(work.masks)])


def timed_blocks(
    step: Step, blocks: int, first: int = 0, steps: int = BLOCK_STEPS
) -> Iterator[float]:
    """Seconds of a step, averaged over each block; steps are counted on from `first`."""
    for block in range(blocks):
        start = first + block * steps
        _synchronise()
        began = time.perf_counter()
        for number in range(start, start + steps):
            step(number)
        _synchronise()
        yield (time.perf_counter() - began) / steps


def measure(step: Step, steps: int = BLOCK_STEPS) -> Measured:
    """Take step 0, warm up, and time blocks of `steps` steps."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    loss = float(step(0))
    first_seconds = time.perf_counter() - began
    for number in range(1, 1 + WARMUP_STEPS):
        step(number)
    found: list[float] = []
    for seconds in timed_blocks(step, MOST_BLOCKS, 1 + WARMUP_STEPS, steps):
        found.append(seconds)
        if len(found) >= FEWEST_BLOCKS and sum(found) * steps > ENOUGH_SECONDS:
            break
    median = statistics.median(found)
    peak = torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0.0
    return Measured(loss, first_seconds, median, (max(found) - min(found)) / median, peak)


def speed(work: Workload, seconds: float) -> dict[str, float]:
    """Images and TFLOP/s of steps that take so many seconds, and what share of the peak that is."""
    tflops = work.flops / seconds / 1e12
    share = utilisation(tflops, torch.cuda.get_device_name()) if ON_GPU else None
    rates = {"images_per_second": len(work.images) / seconds, "tflops": tflops}
    return rates | ({} if share is None else {"flops_utilisation": share})


def assert_parity(ours: float, plain: float) -> None:
    """Both sides compute the same loss: to bf16's precision on a GPU, to fp32's on a CPU."""
    assert abs(ours - plain) < (1e-2 if ON_GPU else 1e-5) * plain, (ours, plain)


def free_memory() -> None:
    """Give the device's memory back after a step function was dropped."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


def profile_steps(step: Step, steps: int = PROFILED_STEPS) -> profile:
    """Record some steps, with what the host does and what the device does."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if ON_GPU else [])
    with profile(activities=kinds) as profiler:
        for number in range(steps):
            step(number)
        _synchronise()
    return profiler


def time_shares(profiler: profile) -> dict[str, float]:
    """Share of the device's time of each kind of operation, the largest first."""
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.device_type != WHERE or event.is_user_annotation:
            continue  # what the host did meanwhile, and spans that contain kernels
        time = event.self_device_time_total if ON_GPU else event.self_cpu_time_total
        spent[_kind(event.key)] += time
    whole = sum(spent.values())
    return {kind: time / whole for kind, time in spent.most_common()}


def compare(size: Size, *, compiled: bool, vary: bool) -> None:
    """Time both, having seen that their first losses agree."""
    work = prepare(config_of(size, size.gpu_batch if ON_GPU else size.cpu_batch), vary=vary)
    ours, plain = _apart(work, compiled) if ON_GPU else _by_turns(work, compiled)
    assert_parity(ours.first_loss, plain.first_loss)
    peaks = {"peak_gb": ours.peak_gb, "plain_peak_gb": plain.peak_gb} if ON_GPU else {}
    emit(
        "train_step",
        model=f"{size.arch}/{size.patch_px}@{size.image_px}, batch {len(work.images)}, "
        f"predictor {size.predictor_dim}x{size.predictor_depth}",
        compiled=str(compiled),
        masks="varying" if vary else "fixed",
        **speed(work, ours.seconds),
        plain_images_per_second=len(work.images) / plain.seconds,
        ratio=plain.seconds / ours.seconds,
        **peaks,
        loss=ours.first_loss,
        plain_loss=plain.first_loss,
    )


def _apart(work: Workload, compiled: bool) -> tuple[Measured, Measured]:
    """One after the other: two networks of ViT-H with their optimizers do not fit on one card."""
    ours = measure(our_step(work, compiled=compiled))
    free_memory()
    return ours, measure(plain_step(work))


def _by_turns(work: Workload, compiled: bool) -> tuple[Measured, Measured]:
    """Interleaved, so that a noisy machine hits both."""
    steps = our_step(work, compiled=compiled), plain_step(work)
    losses = [float(step(0)) for step in steps]
    numbers = [iter(range(1, 1000)) for _ in steps]
    seconds = medians(
        lambda: steps[0](next(numbers[0])), lambda: steps[1](next(numbers[1])), rounds=9
    )
    ours, plain = (
        Measured(loss, 0.0, taken, 0.0, 0.0) for loss, taken in zip(losses, seconds, strict=True)
    )
    return ours, plain


def _synchronise() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def _kind(operation: str) -> str:
    fits = (kind for kind, pattern in KINDS.items() if re.search(pattern, operation.lower()))
    return next(fits, "other")


def main() -> None:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(description="Train step against a plain one.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SIZES))
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--vary", action="store_true", help="new masks for every step")
    parser.add_argument("--profile", action="store_true", help="say where our step spends time")
    parser.add_argument("--trace", type=Path, help="keep the profile; FILE.json or .json.gz")
    chosen = parser.parse_args()
    for name in chosen.names or USUAL:
        size = SIZES[name]
        compare(size, compiled=chosen.compile, vary=chosen.vary)
        free_memory()
        if chosen.profile or chosen.trace:
            work = prepare(
                config_of(size, size.gpu_batch if ON_GPU else size.cpu_batch), vary=chosen.vary
            )
            step = our_step(work, compiled=chosen.compile)
            step(0)
            profiler = profile_steps(step)
            emit("train_step_profile", **time_shares(profiler))
            if chosen.trace:
                profiler.export_chrome_trace(str(chosen.trace))


if __name__ == "__main__":
    main()
