"""What a step costs: matrix-multiplication FLOPs and memory, counted from the configuration.

FLOPs are twice the multiply-adds of matrix products, as model FLOPs utilisation counts them;
norms, GELU and the optimizer are left out (they move memory, they hardly compute).
"""

from typing import NamedTuple

from ijepa.config import PretrainConfig
from ijepa.method.vit import PREDICTOR_MLP_RATIO, Architecture, architecture, target_dim

TRAINED_BYTES = 16  # fp32 weight, gradient and AdamW's two moments
FROZEN_BYTES = 4  # fp32 weight of the target encoder


# Dense bf16 peak of one GPU in TFLOP/s, from the makers' data sheets; a word of its name -> peak.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "V100": 125.0}


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

    Args:
        config: networks, targets and masks.
        context_patches: that one image's context keeps.
        target_patches: of one target block.
    """
    size = architecture(config.encoder.arch)
    patches = config.grid[0] * config.grid[1]
    pixels = 3 * config.encoder.patch_px**2
    embed = 2.0 * pixels * size.dim * patches
    blocks = _num_blocks(config)
    narrow = Architecture(config.predictor.dim, config.predictor.depth, 1, PREDICTOR_MLP_RATIO)
    in_pixels = config.targets.space != "embeddings"
    between = size.dim * context_patches  # the predictor's first and last Linear
    between += target_dim(config) * blocks * target_patches
    seen = patches if config.targets.masked == "output" else blocks * target_patches
    lengths = (patches, 1) if config.targets.masked == "output" else (target_patches, blocks)
    teacher = size._replace(depth=(config.targets.layers or (size.depth,))[-1])
    target = embed * seen / patches + lengths[1] * _blocks(teacher, lengths[0])
    return StepFlops(
        target=0.0 if in_pixels else target,
        context=3 * (embed + _blocks(size, context_patches)),
        predictor=3
        * (blocks * _blocks(narrow, context_patches + target_patches) + 2.0 * narrow.dim * between),
    )


def forward_flops(config: PretrainConfig) -> float:
    """FLOPs of the encoder for one whole image, as when features are extracted."""
    size = architecture(config.encoder.arch)
    patches = config.grid[0] * config.grid[1]
    return 6.0 * config.encoder.patch_px**2 * size.dim * patches + _blocks(size, patches)


def utilisation(tflops: float, device: str) -> float | None:
    """Share of the device's bf16 peak, 0 to 1; None for a device that is not in `PEAK_TFLOPS`."""
    peaks = [peak for name, peak in PEAK_TFLOPS.items() if name in device]
    return tflops / peaks[0] if peaks else None


def weights_bytes(encoder_parameters: int, predictor_parameters: int) -> int:
    """Weights, gradients and optimizer of all three networks, in fp32."""
    trained = encoder_parameters + predictor_parameters
    return TRAINED_BYTES * trained + FROZEN_BYTES * encoder_parameters


def activation_bytes(
    config: PretrainConfig,
    images: int,
    context_patches: int,
    target_patches: int,
    *,
    bf16: bool,
    recompute: bool = False,
) -> float:
    """What the backward pass keeps for `images` images; an estimate, attention being fused.

    A block keeps, for each token and in the computing type: two norms' inputs and outputs, queries,
    keys, values and what attention makes of them (8 widths), and the MLP before and after GELU. If
    blocks are recomputed, it keeps what enters them, and one block is whole at a time.
    """
    size = architecture(config.encoder.arch)
    narrow = Architecture(config.predictor.dim, config.predictor.depth, 1, PREDICTOR_MLP_RATIO)
    blocks = _num_blocks(config)
    together = blocks * (context_patches + target_patches)
    numbers: float
    if recompute:
        numbers = context_patches * size.dim * size.depth + together * 4 * narrow.dim * narrow.depth
        numbers += max(context_patches * _kept(size), together * _kept(narrow))
    else:
        numbers = context_patches * size.depth * _kept(size)
        numbers += together * narrow.depth * _kept(narrow)
    return numbers * images * (2 if bf16 else 4)


def _num_blocks(config: PretrainConfig) -> int:
    masks = config.masks
    if masks.kind == "multiblock":
        return masks.num_targets
    return 3 if masks.kind == "rasterized" else 1


def _blocks(size: Architecture, tokens: float) -> float:
    """Forward pass of all blocks over one sequence."""
    linear = 2.0 * (4 + 2 * size.mlp_ratio) * size.dim**2
    attention = 4.0 * tokens * size.dim
    return size.depth * tokens * (linear + attention)


def _kept(size: Architecture) -> float:
    return (8 + 2 * size.mlp_ratio) * size.dim
