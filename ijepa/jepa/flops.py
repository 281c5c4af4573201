"""What a step costs: matrix-multiplication FLOPs and memory, counted from the configuration.

FLOPs are twice the multiply-adds of matrix products, as model FLOPs utilisation counts them;
norms, GELU and the optimizer are left out (they move memory, they hardly compute).
"""

from typing import NamedTuple

from ijepa.config import Architecture, PretrainConfig, architecture
from ijepa.jepa.model import PREDICTOR_MLP_RATIO, target_dim

FP32_BYTES, BF16_BYTES = 4, 2
# Dense bf16 peak of one GPU in TFLOP/s, from the makers' data sheets; words of its name -> peak.
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0}


class StepFlops(NamedTuple):
    """FLOPs for one image: forward for the target encoder, forward and backward for the others."""

    target: float
    context: float
    predictor: float

    @property
    def total(self) -> float:
        """Of the whole step."""
        return sum(self)


def step_flops(config: PretrainConfig, context_patches: float, target_patches: float) -> StepFlops:
    """FLOPs for one image of a training step; a backward pass is twice its forward pass.

    Patches are those that one image's context keeps, and those of one target block.
    """
    size, narrow, blocks = _networks(config)
    patches, draws = config.grid[0] * config.grid[1], config.masks.draws_per_image
    embed = 2.0 * config.data.num_channels * config.encoder.patch_px**2 * size.dim  # of a patch
    ends = size.dim * context_patches + target_dim(config) * blocks * target_patches
    predictor = blocks * _blocks(narrow, context_patches + target_patches) + 2.0 * narrow.dim * ends
    teacher = size._replace(depth=(config.targets.layers or (size.depth,))[-1])
    passes, seen = 1, float(patches)
    if config.targets.masked == "input":
        passes, seen = blocks * draws, target_patches
    target = passes * (embed * seen + _blocks(teacher, seen))
    return StepFlops(
        target=target if config.targets.space == "embeddings" else 0.0,
        context=3 * draws * (embed * context_patches + _blocks(size, context_patches)),
        predictor=3 * draws * predictor,
    )


def utilisation(tflops: float, device: str) -> float | None:
    """Share of the device's bf16 peak, 0 to 1; None for a device that is not in `PEAK_TFLOPS`."""
    peaks = [peak for name, peak in PEAK_TFLOPS.items() if name in device]
    return tflops / peaks[0] if peaks else None


def step_bytes(
    config: PretrainConfig,
    parameters: tuple[int, int],
    masks: tuple[int, int],
    *,
    images: int,
    bf16: bool,
    recompute: bool = False,
) -> float:
    """Memory that a training step needs at its peak.

    Args:
        config: networks, targets and masks.
        parameters: of the encoder and of the predictor, trained ones.
        masks: patches of the longest context and of the largest target block.
        images: computed at a time; gradients of parts of a batch add up.
        bf16: whether networks compute in bfloat16.
        recompute: whether blocks are computed again in the backward pass.
    """
    trained, encoder = sum(parameters), parameters[0]
    weights = FP32_BYTES * (3 * trained + encoder)  # AdamW has two moments; the target encoder
    if bf16:  # weights as autocast has cast them, and the teacher's copy
        has_copy = config.targets.space == "embeddings" and config.optimization.teacher == "bf16"
        weights += BF16_BYTES * (trained + encoder * has_copy)
    kept = activation_bytes(config, images, *masks, bf16=bf16, recompute=recompute)
    gradients, adds_up = FP32_BYTES * trained, images < config.data.batch_size
    return weights + (gradients + kept if adds_up else max(gradients, kept))  # else one goes first


def activation_bytes(
    config: PretrainConfig,
    images: int,
    context_patches: int,
    target_patches: int,
    *,
    bf16: bool,
    recompute: bool = False,
) -> float:
    """What the backward pass keeps, as `step_bytes`; an estimate, attention being fused.

    For each token a block keeps the residual stream before each norm in fp32; in the computing type
    each norm's output, queries, keys, values, the output of attention, and the MLP before and after
    GELU. If blocks are recomputed, only their inputs are kept, and one block is whole at a time.
    """
    size, narrow, blocks = _networks(config)
    together = blocks * (context_patches + target_patches)
    computed = BF16_BYTES if bf16 else FP32_BYTES
    context_block, predictor_block = (
        tokens * one.dim * (2 * FP32_BYTES + (7 + 2 * one.mlp_ratio) * computed)
        for one, tokens in ((size, context_patches), (narrow, together))
    )
    last = target_patches / (context_patches + target_patches)  # of the predictor: targets alone
    kept = size.depth * context_block + (narrow.depth - 1 + last) * predictor_block
    if recompute:
        kept = context_patches * size.dim * size.depth * FP32_BYTES
        kept += together * narrow.dim * narrow.depth * (FP32_BYTES + 3 * computed)
        kept += max(context_block, predictor_block)
    # Of the loss: predictions, targets, both in fp32, and the gradient.
    outputs = blocks * target_patches * target_dim(config) * 4 * FP32_BYTES
    height, width = config.data.image_size
    pixels = 2 * config.data.num_channels * height * width  # of an image, and of its patches
    return images * (config.masks.draws_per_image * (kept + outputs) + FP32_BYTES * pixels)


def _networks(config: PretrainConfig) -> tuple[Architecture, Architecture, int]:
    """Sizes of encoder and predictor, and how many blocks the predictor predicts of an image."""
    masks = config.masks
    narrow = Architecture(config.predictor.dim, config.predictor.depth, 1, PREDICTOR_MLP_RATIO)
    blocks = 3 if masks.kind == "rasterized" else 1
    if masks.kind == "multiblock":
        blocks = masks.num_targets
    return architecture(config.encoder.arch), narrow, blocks


def _blocks(size: Architecture, tokens: float) -> float:
    """Forward pass of all blocks over one sequence."""
    linear = 2.0 * (4 + 2 * size.mlp_ratio) * size.dim**2
    attention = 4.0 * tokens * size.dim
    return size.depth * tokens * (linear + attention)
