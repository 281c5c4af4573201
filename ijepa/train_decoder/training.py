"""Training of a decoder on a frozen run as a task, and what is measured of it at its end.

The weights that are kept are averages.
"""

import contextlib
import copy
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ijepa.compute import pick_linear
from ijepa.config import DecoderConfig, PretrainConfig, Runtime
from ijepa.data.loader import Batch, RandomCropBatches, StepPlan, read_views
from ijepa.data.shards import ShardSet
from ijepa.decoder.model import (
    Decoder,
    cut_blocks,
    draw_blocks,
    draw_flow,
    embed,
    evaluate_decoder,
    flow_loss,
    held_numbers,
)
from ijepa.distributed import moved, uses_bf16
from ijepa.encoders.own import load_jepa
from ijepa.errors import IjepaError
from ijepa.files import read_metrics, write_bytes, write_json
from ijepa.jepa.masks import Masks, check_masks
from ijepa.jepa.model import IJepa
from ijepa.jepa.schedules import warmup_cosine
from ijepa.progress import Progress
from ijepa.recipes import dump_yaml
from ijepa.stage import Work
from ijepa.train.loop import Task, fit
from ijepa.train_decoder import RESULT
from ijepa.weights import weights_sha256
from ijepa.world import World

# Images (B, 3, H, W) uint8, masks with one target block, its boxes (B, 4), noise of `draw_flow`.
Inputs = tuple[Tensor, Masks, Tensor, Tensor, Tensor]


def train(
    work: Work, data: ShardSet, config: DecoderConfig, runtime: Runtime, progress: Progress
) -> None:
    """Take the steps that are left, measure the decoder on held-out images, and publish."""
    jepa, run = load_jepa(config.encoder)
    images, test = data.split(config.split), data.split(config.test_split)
    if run.targets.space != "embeddings":
        raise IjepaError(
            f"{config.encoder} predicts {run.targets.space}, which need no decoder; take a run "
            f"whose targets.space is embeddings."
        )
    if data.pixels or run.data.channels:
        raise IjepaError(
            f"A decoder draws 8-bit RGB; {config.encoder} or {data.folder} is of other images."
        )
    if len(images) < config.batch_size:
        raise IjepaError(
            f"{config.split} holds {len(images):,} images, fewer than one batch of "
            f"{config.batch_size}; lower it with --set batch_size={max(2, len(images) // 4)}."
        )
    view = run.data.model_copy(update={"batch_size": config.batch_size})
    crops = RandomCropBatches(images, StepPlan(len(images), view, config.seed))
    sha256 = weights_sha256(jepa.state_dict())
    task = DecoderTask(config, jepa, run, sha256, crops, runtime)
    numbers = held_numbers(len(test), config.evaluated_images, config.seed)
    fit(task, work.folder, progress)
    views = read_views(test, numbers, run.data)
    distances = evaluate_decoder(task.averaged, jepa, run, views.to(task.device), progress)
    losses = [record["loss"] for record in read_metrics(work.folder / "metrics.jsonl")]
    last = losses[-max(1, len(losses) // 10) :]
    write_bytes(work.folder / "config.yaml", dump_yaml(config).encode())
    result = {"steps": config.steps, "loss": sum(last) / len(last), **distances}
    write_json(work.folder / RESULT, result)
    work.publish({"seed": config.seed, "device": task.device_name, "command": runtime.command})


class DecoderTask(Task[Inputs]):
    """Decoder, its `averaged` weights, which are the ones to use, and its optimizer.

    Images, crops, blocks and noise of a step are functions of (seed, step). Crops are those that
    the encoder was pretrained on.
    """

    config: DecoderConfig
    name = "train decoder"
    unit = "steps"
    units_per_step = 1
    shapes_vary = True

    def __init__(
        self,
        config: DecoderConfig,
        jepa: IJepa,
        run: PretrainConfig,
        encoder_sha256: str,
        crops: Dataset[Batch],
        runtime: Runtime,
    ) -> None:
        """Make the decoder and move it and the frozen networks `jepa` to the device.

        `jepa` was trained by configuration `run`; every checkpoint holds the sha256 of its weights.
        `crops` are batches of `config.batch_size` images.
        """
        check_masks(run.grid, run.masks)
        super().__init__(config, runtime, World())
        self._run, self._sha256, self._crops = run, encoder_sha256, crops
        self._jepa = jepa.to(self.device)
        dim = jepa.encoder.embed_dim
        self._decoder = Decoder(config, dim).to(self.device)
        self.averaged = copy.deepcopy(self._decoder).requires_grad_(False).eval()
        self.model = nn.ModuleDict({"decoder": self._decoder, "averaged": self.averaged})
        self.optimizer = torch.optim.AdamW(
            self._decoder.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.total_steps = config.steps
        self.linear = pick_linear(self.device, config.batch_size * run.grid[0] * run.grid[1], dim)
        self.bf16 = uses_bf16(config.precision, self.device)

    def batches(self, numbers: range) -> Generator[Batch]:
        """Random crops of each step, in order."""
        return self.loaded(self._crops, numbers)

    def prepare(self, batch: Batch) -> Inputs:
        """Draw a block of each image, and noise."""
        count, config = len(batch.images), self.config
        masks, boxes = draw_blocks(self._run, count, config.seed, batch.step)
        drawn = draw_flow(count, config.image_px, config.seed, batch.step)
        boxes, noise, share = (moved(tensor, self.device) for tensor in (boxes, *drawn))
        images = moved(batch.images, self.device)
        return images, masks.to(self.device), boxes, noise, share

    def step(self, step: int, inputs: Inputs) -> dict[str, Any]:
        """One update; the first one sets the decoder's mean and std, from the first steps."""
        config, done, (images, masks, boxes, noise, share) = self.config, step + 1, inputs
        if step == 0:
            count = -(-config.statistics_images // config.batch_size)
            with contextlib.closing(self.batches(range(count))) as made:
                seen = torch.cat([self._condition(*self.prepare(batch)[:2]) for batch in made])
            for decoder in (self._decoder, self.averaged):
                decoder.standardise(seen)
        pixels = cut_blocks(images, boxes, config.image_px)
        condition = self._condition(images, masks)
        lr = warmup_cosine(step / config.steps, config.lr, 0.0, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        with self.autocast():
            loss = flow_loss(self._decoder, pixels, condition, noise, share)
        torch.autograd.backward(loss)
        self.optimizer.step()
        kept = min(config.ema, (1 + done) / (10 + done))  # less in the first steps, to forget them
        with torch.no_grad():
            average, newest = map(tuple, (self.averaged.parameters(), self._decoder.parameters()))
            torch._foreach_lerp_(average, newest, 1.0 - kept)
        return {"lr": lr, "loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """The weights that the decoder was trained on."""
        return {"encoder_sha256": self._sha256}

    def _condition(self, images: Tensor, masks: Masks) -> Tensor:
        with self.autocast():
            return embed(self._jepa, self._run.data, images, masks, self.config.condition)
