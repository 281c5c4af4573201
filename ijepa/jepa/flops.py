"""What a run and its steps cost: matrix-multiplication FLOPs and memory, from the configuration.

FLOPs are twice the multiply-adds of matrix products, as model FLOPs utilisation counts them;
norms, GELU and the optimizer are left out (they move memory, they hardly compute).
"""

import torch

from ijepa.config import RUNTIME, Architecture, Config, PretrainConfig, Runtime, architecture
from ijepa.distributed import uses_bf16
from ijepa.jepa.masks import mask_statistics
from ijepa.jepa.model import PREDICTOR_MLP_RATIO, build_ijepa, target_dim
from ijepa.jepa.schedules import steps_per_epoch

PLANNED_BATCHES = 50  # sampled for the lengths of contexts
FP32_BYTES, BF16_BYTES = 4, 2
# Dense bf16 peak of one GPU in TFLOP/s, by its maker: words of its name, the first that fit.
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0,
               "A100": 312.0, "L40S": 362.0}  # fmt: skip


def step_flops(
    config: PretrainConfig, context_patches: float, target_patches: float
) -> tuple[float, float, float]:
    """FLOPs for one image of a training step: target encoder, context encoder, predictor.

    The target encoder has no backward pass; elsewhere it costs twice the forward pass. Patches are
    those that one image's context keeps, and those of one target block.
    """
    size, narrow, num_targets = _networks(config)
    patches, draws = config.grid[0] * config.grid[1], config.masks.draws_per_image
    embed = 2.0 * config.data.num_channels * config.encoder.patch_px**2 * size.dim  # of a patch
    ends = size.dim * context_patches + target_dim(config) * num_targets * target_patches
    sequences = num_targets * _forward_flops(narrow, context_patches + target_patches)
    predictor = sequences + 2.0 * narrow.dim * ends
    teacher = size._replace(depth=(config.targets.layers or (size.depth,))[-1])
    passes, seen = 1, float(patches)
    if config.targets.masked == "input":
        passes, seen = num_targets * draws, target_patches
    target = passes * (embed * seen + _forward_flops(teacher, seen))
    context = embed * context_patches + _forward_flops(size, context_patches)
    target = target if config.targets.space == "embeddings" else 0.0
    return target, 3 * draws * context, 3 * draws * predictor


def utilisation(tflops: float, device: str) -> float | None:
    """Share of the device's bf16 peak, 0 to 1; None for a device that is not in `PEAK_TFLOPS`."""
    peaks = [peak for name, peak in PEAK_TFLOPS.items() if name in device]
    return tflops / peaks[0] if peaks else None


class PretrainPlan(Config):
    """What a run would do; lengths are those of sampled batches."""

    images: int  # in the split
    batch_size: int  # images of a step, over all devices
    steps_per_epoch: int
    steps: int
    images_seen: int
    grid: tuple[int, int]
    encoder_parameters: int  # trained ones, without positions
    predictor_parameters: int
    context_patches: float  # mean, after the cut
    target_patches: float  # mean, of one target block
    gflops_per_image: float  # of matrix products, forward and backward, at these mean lengths
    largest_context: int
    images_at_a_time: int
    bf16: bool
    memory_gb: float  # estimated, of one process: weights, gradients, optimizer, most activations


def plan_training(
    images: int,
    config: PretrainConfig,
    runtime: Runtime = RUNTIME,
    *,
    on_gpu: bool,
    processes: int = 1,
) -> PretrainPlan:
    """What `ijepa pretrain` would do with so many images, which `processes` share."""
    batch, per_epoch = config.data.batch_size, steps_per_epoch(images, config)
    steps = per_epoch * config.optimization.epochs
    with torch.device("meta"):
        networks = build_ijepa(config)
    encoder, predictor = (
        sum(p.numel() for p in network.parameters() if p.requires_grad)
        for network in (networks.encoder, networks.predictor)
    )
    lengths = mask_statistics(config, PLANNED_BATCHES)
    cost = step_flops(config, lengths.context_patches, lengths.target_patches)
    share = batch // processes
    at_a_time = min(runtime.micro_batch or share, share)
    bf16 = uses_bf16(config.optimization.precision, torch.device("cuda" if on_gpu else "cpu"))
    trained = encoder + predictor
    weights = FP32_BYTES * (3 * trained + encoder)  # AdamW has two moments; the target encoder
    if bf16:  # weights as autocast has cast them, and the teacher's copy
        has_copy = config.targets.space == "embeddings" and config.optimization.teacher == "bf16"
        weights += BF16_BYTES * (trained + encoder * has_copy)
    largest, recompute = (lengths.largest_context, lengths.largest_target), runtime.recompute
    kept = activation_bytes(config, at_a_time, *largest, bf16=bf16, recompute=recompute)
    gradients = FP32_BYTES * trained
    memory = weights + max(gradients, kept)  # gradients take the place of activations
    if at_a_time < share:  # gradients of all parts are summed up
        memory = weights + gradients + kept
    return PretrainPlan(
        images=images,
        batch_size=batch,
        steps_per_epoch=per_epoch,
        steps=steps,
        images_seen=steps * batch,
        grid=config.grid,
        encoder_parameters=encoder,
        predictor_parameters=predictor,
        context_patches=lengths.context_patches,
        target_patches=lengths.target_patches,
        gflops_per_image=sum(cost) / 1e9,
        largest_context=lengths.largest_context,
        images_at_a_time=at_a_time,
        bf16=bf16,
        memory_gb=memory / 1e9,
    )


def activation_bytes(
    config: PretrainConfig,
    images: int,
    context_patches: int,
    target_patches: int,
    *,
    bf16: bool,
    recompute: bool = False,
) -> float:
    """Estimated bytes that are kept for the backward pass, at these largest lengths.

    For each token a block keeps the residual stream before each norm in fp32; in the computing type
    each norm's output, queries, keys, values, the output of (fused) attention, and the MLP before
    and after GELU. With `recompute`, only the inputs of blocks are kept, and all of one block.
    """
    size, narrow, num_targets = _networks(config)
    together = num_targets * (context_patches + target_patches)
    computed = BF16_BYTES if bf16 else FP32_BYTES
    context_block, predictor_block = (
        tokens * network.dim * (2 * FP32_BYTES + (7 + 2 * network.mlp_ratio) * computed)
        for network, tokens in ((size, context_patches), (narrow, together))
    )
    last = target_patches / (context_patches + target_patches)  # of the predictor: targets alone
    kept = size.depth * context_block + (narrow.depth - 1 + last) * predictor_block
    if recompute:
        kept = context_patches * size.dim * size.depth * FP32_BYTES
        kept += together * narrow.dim * narrow.depth * (FP32_BYTES + 3 * computed)
        kept += max(context_block, predictor_block)
    # Of the loss: predictions, targets, both in fp32, and the gradient.
    outputs = num_targets * target_patches * target_dim(config) * 4 * FP32_BYTES
    height, width = config.data.image_size
    pixels = 2 * config.data.num_channels * height * width  # of an image, and of its patches
    return images * (config.masks.draws_per_image * (kept + outputs) + FP32_BYTES * pixels)


def _networks(config: PretrainConfig) -> tuple[Architecture, Architecture, int]:
    """Sizes of encoder and predictor, and the number of target blocks of an image."""
    masks = config.masks
    narrow = Architecture(config.predictor.dim, config.predictor.depth, 1, PREDICTOR_MLP_RATIO)
    num_targets = 3 if masks.kind == "rasterized" else 1
    if masks.kind == "multiblock":
        num_targets = masks.num_targets
    return architecture(config.encoder.arch), narrow, num_targets


def _forward_flops(size: Architecture, tokens: float) -> float:
    """FLOPs of all Transformer blocks over one sequence."""
    linear = 2.0 * (4 + 2 * size.mlp_ratio) * size.dim**2
    attention = 4.0 * tokens * size.dim
    return size.depth * tokens * (linear + attention)
