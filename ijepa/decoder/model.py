"""A small flow-matching model that draws a block's pixels from the block's average embedding.

What samples drawn from one embedding have in common is in the embedding; what varies is not. The
decoder draws only the block, where the paper's draws the whole image: its pixels depend on that one
vector alone, not on the context. Blocks of all aspects are resized to one square. The vector may
tell where a block lies, because embeddings include positions. Masks name the patches of a block;
its box is (top, left, height, width) in pixels.

Do its samples depend on their condition? They are encoded again, and compared: a block is drawn
from the embedding of its true pixels, put back into its image, and encoded by the frozen target
encoder. The same is done with a block drawn, with the same noise, from the embedding of this place
in another image. Only the drawn pixels differ, so a decoder that ignores its condition, or uses
only the place in it, shows no difference.

Source: paper section 7 and figure 6, which train a diffusion model (RCDM, Bordes et al. 2022) on
average-pooled predictions; flow matching is Lipman et al. 2023, network and sampler `diffusers`'.
"""

from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import ttest_1samp
from torch import Tensor, nn

from ijepa.config import DataConfig, DecoderConfig, PretrainConfig, validated
from ijepa.config.stages import GROUPS
from ijepa.errors import IjepaError, optional
from ijepa.files import LAST
from ijepa.jepa.augment import crop_batch, normalise
from ijepa.jepa.masks import Grid, Masks, sample_masks
from ijepa.jepa.model import IJepa, Targets, last_layer
from ijepa.jepa.rng import MASKS, NOISE, SHUFFLE, stream
from ijepa.progress import Progress
from ijepa.weights import load_state, load_weights, weights_sha256

DIFFUSERS = "diffusers", "Decoding predictions"
TIMES = 1000  # the U-Net's time of pure noise
AT_ONCE = 32  # images that are evaluated
HELD_OUT = 2**31  # number of the streams of evaluation; training has fewer steps


class Decoder(nn.Module):
    """A U-Net conditioned on one vector and on the time; `config` says how it was trained."""

    mean: Tensor  # (dim,) of the conditions in training
    std: Tensor

    def __init__(self, config: DecoderConfig, dim: int) -> None:
        """Make a fresh one of conditions (B, dim); weights come from `config.seed`."""
        super().__init__()
        unet_class = optional(*DIFFUSERS).UNet2DModel
        self.config = config
        depth, condition_dim = len(config.channels), 4 * config.channels[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.unet = unet_class(
                sample_size=config.image_px,
                in_channels=3,
                out_channels=3,
                layers_per_block=1,
                block_out_channels=config.channels,
                down_block_types=("DownBlock2D",) * depth,
                up_block_types=("UpBlock2D",) * depth,
                norm_num_groups=GROUPS,
                class_embed_type="identity",
                resnet_time_scale_shift="scale_shift",
            )
            self.tell = nn.Sequential(
                nn.Linear(dim, condition_dim), nn.SiLU(), nn.Linear(condition_dim, condition_dim)
            )
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def forward(self, noisy: Tensor, noise_share: Tensor, condition: Tensor) -> Tensor:
        """The direction from pixels to noise, (B, 3, px, px).

        `noisy` is a mix of both, with a share of noise of `noise_share` (B,), 0 to 1. `condition`
        (B, dim) are average embeddings of blocks, not standardised.
        """
        embedded = self.tell((condition - self.mean) / self.std)
        velocity: Tensor = self.unet(noisy, noise_share * TIMES, class_labels=embedded).sample
        return velocity

    def standardise(self, conditions: Tensor) -> None:
        """Set `mean` and `std` to those of (n, dim) conditions."""
        self.mean.copy_(conditions.mean(dim=0))
        self.std.copy_(conditions.std(dim=0).clamp(min=1e-6))


def load_decoder(folder: Path, jepa: IJepa, name: str) -> Decoder:
    """Load what `ijepa train-decoder` made in `folder`, onto the CPU, frozen.

    An `IjepaError` refuses one that was trained on other weights than `jepa`, the run of that name
    whose embeddings are to be decoded.
    """
    path = folder / LAST
    if not path.is_file():
        raise IjepaError(
            f"{folder} is no finished decoder: there is no {path}. Make one with "
            f"`ijepa train-decoder`."
        )
    body = load_state(path)
    trained_on = body.get("facts", {}).get("encoder_sha256")
    if not trained_on:
        raise IjepaError(
            f"{path} is no checkpoint of a decoder; name one of `ijepa train-decoder`."
        )
    if trained_on != (digest := weights_sha256(jepa.state_dict())):
        raise IjepaError(
            f"{folder} decodes embeddings of weights {trained_on[:12]} "
            f"({body['config'].get('encoder')}), but {name} has weights {digest[:12]}; "
            f"train a decoder for it."
        )
    config = validated(DecoderConfig, body["config"], str(path))
    decoder, own = Decoder(config, jepa.encoder.embed_dim), "averaged."
    averaged = {n.removeprefix(own): w for n, w in body["model"].items() if n.startswith(own)}
    load_weights(decoder, averaged, path)
    return decoder.eval().requires_grad_(False)


def draw_flow(count: int, image_px: int, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Draw a step's noise (count, 3, px, px) and the share of noise in each image (count,).

    `HELD_OUT + k` is the number of sample k in evaluation. Most shares of noise are in the middle
    (logit-normal: Esser et al. 2024).
    """
    drawn = int(stream(seed, NOISE, number).integers(2**62))
    generator = torch.Generator().manual_seed(drawn)
    noise = torch.randn(count, 3, image_px, image_px, generator=generator)
    return noise, torch.sigmoid(torch.randn(count, generator=generator))


def flow_loss(
    decoder: nn.Module, pixels: Tensor, condition: Tensor, noise: Tensor, noise_share: Tensor
) -> Tensor:
    """Mean squared error of the direction from pixels (B, 3, px, px) to noise of `draw_flow`."""
    share = noise_share.view(-1, 1, 1, 1)
    noisy = (1 - share) * pixels + share * noise
    velocity = decoder(noisy, noise_share, condition)
    return F.mse_loss(velocity.float(), noise - pixels)


@torch.inference_mode()
def sample_blocks(decoder: Decoder, condition: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Draw one block for each condition (B, dim): (B, 3, px, px) in [-1, 1].

    `noise` is (B, 3, px, px); equal noise, equal samples. `steps` are Euler's.
    """
    scheduler = optional(*DIFFUSERS).FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMES)
    scheduler.set_timesteps(steps, device=noise.device)
    scheduler.set_begin_index(0)  # else it is searched for, on the device
    drawn = noise
    for time in scheduler.timesteps:
        share = (time / TIMES).expand(len(drawn))
        velocity = decoder(drawn, share, condition).float()
        drawn = scheduler.step(velocity, time, drawn).prev_sample
    return drawn.clamp(-1, 1)


@torch.no_grad()
def embed(
    jepa: IJepa, data: DataConfig, images: Tensor, masks: Masks, of: str = "targets"
) -> Tensor:
    """Average embedding, in the last target layer, of one block of each image: (B, dim) float32.

    The networks are frozen and predict embeddings; `data` is of their run. Images are (B, 3, H, W)
    uint8, `masks` theirs with one target block. `of` is `targets`, those of the target encoder, or
    the predictor's `predictions` of them.
    """
    seen = normalise(images, data.mean, data.std)
    if of == "predictions":
        tokens = jepa.predictions(seen, masks)
    else:
        tokens = Targets(jepa.config, jepa.target_encoder, seen).of(slice(None), masks.targets)
    return last_layer(tokens, jepa.config).mean(1).float()


def draw_blocks(run: PretrainConfig, count: int, seed: int, number: int) -> tuple[Masks, Tensor]:
    """The masks of a run for `count` images in one group, with one of their target blocks each.

    A function of the seed and the number of a step, which is `HELD_OUT` in evaluation. Returns the
    masks and the boxes (count, 4) of the blocks, on the CPU; raises as `block_boxes`.
    """
    kind = run.masks.model_copy(update={"group_size": count})
    rng = stream(seed, MASKS, number)
    [masks] = sample_masks(run.grid, count, kind, rng)
    block = int(rng.integers(len(masks.targets)))
    masks = Masks(masks.context, masks.targets[block : block + 1])
    return masks, block_boxes(masks.targets[0], run.grid, run.encoder.patch_px)


def block_boxes(index: Tensor, grid: Grid, patch_px: int) -> Tensor:
    """(B, 4) int64 boxes of blocks that are rectangles of one size.

    `index` (B, T) int64 holds the patches of one block an image, row-major on the grid of (rows,
    columns). An `IjepaError` refuses those that are no rectangle, as of `random` masks.
    """
    rows, columns = index // grid[1], index % grid[1]
    top, left = rows.amin(1), columns.amin(1)
    height, width = rows.amax(1) - top + 1, columns.amax(1) - left + 1
    if (height * width != index.shape[1]).any():
        raise IjepaError(
            "The run's target blocks are no rectangles, so they have no pixels to decode to; take "
            "a run with masks.kind multiblock, block or rasterized."
        )
    assert (height == height[0]).all()
    return torch.stack([top, left, height, width], dim=1) * patch_px


def cut_blocks(images: Tensor, boxes: Tensor, image_px: int) -> Tensor:
    """Each block's pixels, brought to a square: (B, 3, image_px, image_px) float in [-1, 1].

    Images are (B, 3, H, W) uint8, boxes (B, 4) of `block_boxes`, on one device.
    """
    unflipped = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    return crop_batch(images, boxes, unflipped, image_px).float() / 127.5 - 1


def paste_blocks(images: Tensor, boxes: Tensor, blocks: Tensor) -> Tensor:
    """A copy of images (B, 3, H, W) uint8 with these pixels in their blocks.

    `blocks` (B, 3, px, px) float, clipped to [-1, 1], are resized to the boxes (B, 4) of
    `block_boxes`.
    """
    height, width = boxes[0, 2:].tolist()
    fitted = F.interpolate(blocks.float(), (height, width), mode="bilinear", antialias=True)
    pixels = ((fitted + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    pasted = images.clone()
    for image, block, (top, left, _, _) in zip(pasted, pixels, boxes.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = block
    return pasted


def held_numbers(num_images: int, count: int, seed: int) -> list[int]:
    """Numbers of `count` images of a split, or of all if there are fewer, in random order."""
    if min(num_images, count) < 2:
        raise IjepaError(f"The split holds too few images ({num_images}); two are needed.")
    numbers: list[int] = stream(seed, SHUFFLE, HELD_OUT).permutation(num_images)[:count].tolist()
    return numbers


def evaluate_decoder(
    decoder: Decoder, jepa: IJepa, run: PretrainConfig, images: Tensor, progress: Progress
) -> dict[str, float | tuple[float, float]]:
    """Cosine distances to the target's embedding, means over held-out images.

    `images` (n, 3, H, W) uint8, at least two, `decoder` and the frozen `jepa` of configuration
    `run` are on one device. Returns fields of `ijepa.train_decoder.DecoderResult`.
    """
    config, distances = decoder.config, defaultdict(list)
    masks, boxes = draw_blocks(run, len(images), config.seed, HELD_OUT)
    noise, _ = draw_flow(len(images), config.image_px, config.seed, HELD_OUT)
    masks, boxes = masks.to(images.device), boxes.to(images.device)
    noise = noise.to(images.device)
    others = images.roll(1, dims=0)
    progress("evaluate decoder images", 0, len(images))
    for start in range(0, len(images), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        seen, hidden = images[part], masks.images(part)
        target = embed(jepa, run.data, seen, hidden)
        conditions = {
            "true": target,
            "shuffled": embed(jepa, run.data, others[part], hidden),
            "predicted": embed(jepa, run.data, seen, hidden, "predictions"),
        }
        blocks = {
            name: sample_blocks(decoder, condition, noise[part], config.sampling_steps)
            for name, condition in conditions.items()
        }
        blocks["resized"] = cut_blocks(seen, boxes[part], config.image_px)
        for name, drawn in blocks.items():
            again = embed(jepa, run.data, paste_blocks(seen, boxes[part], drawn), hidden)
            distances[name].append((1 - F.cosine_similarity(again, target)).cpu().double())
        progress("evaluate decoder images", min(part.stop, len(images)), len(images))
    joined = {name: torch.cat(parts) for name, parts in distances.items()}
    gains = (joined["shuffled"] - joined["true"]).numpy()
    interval = ttest_1samp(gains, 0.0).confidence_interval(0.95)
    return {
        "images": len(gains),
        "gain": float(gains.mean()),
        "gain_interval": (float(interval.low), float(interval.high)),
        "closer": float((gains > 0).mean()),
        **{name: float(values.mean()) for name, values in joined.items()},
    }
