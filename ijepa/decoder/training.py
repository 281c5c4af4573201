"""The loop that trains a decoder on a frozen run: steps, records, checkpoints."""

import contextlib
import copy
import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ijepa.compute import computing, linear_name, pick_linear
from ijepa.config import DecoderConfig, Runtime
from ijepa.data.loader import Batch, Images, RandomCropBatches, StepPlan, batches
from ijepa.decoder.block_pixels import block_boxes, cut_blocks, draw_blocks
from ijepa.decoder.model import (
    CONDITIONS,
    Decoded,
    average_weights,
    build_decoder,
    draw_flow,
    flow_loss,
)
from ijepa.distributed import device_name, num_workers, pick_device, uses_bf16
from ijepa.errors import IjepaError
from ijepa.jepa.augment import normalise
from ijepa.jepa.masks import check_masks
from ijepa.jepa.rng import MASKS, NOISE, stream
from ijepa.progress import Progress
from ijepa.train.checkpoint import CheckpointWriter
from ijepa.train.classifier import learning_rate
from ijepa.train.metrics import MetricsLog
from ijepa.train.stopping import stop_requests
from ijepa.weights import load_state, load_weights

FLUSH_STEPS = 10
LAST = Path("checkpoints") / "last.pt"

log = logging.getLogger(__name__)


class DecoderRun:
    """Decoder, its averaged weights, optimizer and the number of steps done.

    Images, crops, blocks and noise of a step are functions of (seed, step), so that a run that was
    stopped ends as one that was not. Crops are those that the encoder was pretrained on.
    """

    def __init__(
        self,
        folder: Path,
        source: Decoded,
        encoder_sha256: str,
        images: Images,
        config: DecoderConfig,
        runtime: Runtime,
    ) -> None:
        """Take up what stands in `folder`, or begin.

        Args:
            folder: gets `checkpoints/last.pt`, `metrics.jsonl` and `tensorboard/`.
            source: the frozen run; moved to the device.
            encoder_sha256: of the run's weights, written down beside the decoder's.
            images: to learn from.
            config: what to do.
            runtime: device, workers, how often to save.

        Raises:
            IjepaError: diffusers is missing, target blocks are no rectangles, a damaged checkpoint.
        """
        self._folder, self._config, self._runtime = folder, config, runtime
        self._device = device = pick_device(runtime.device)
        self._source, self._jepa = source, source.jepa.to(device)
        self._sha256 = encoder_sha256
        check_masks(source.config.grid, source.config.masks)
        self._data = source.config.data.model_copy(update={"batch_size": config.batch_size})
        self._batches = RandomCropBatches(images, StepPlan(len(images), self._data, config.seed))
        dim = self._jepa.encoder.embed_dim
        self._decoder = build_decoder(config, dim).to(device)
        self.averaged = copy.deepcopy(self._decoder).requires_grad_(False).eval()
        self._optimizer = torch.optim.AdamW(
            self._decoder.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self._bf16 = uses_bf16(config.precision, device)
        tokens = config.batch_size * source.config.grid[0] * source.config.grid[1]
        self._linear = pick_linear(device, tokens, dim)
        self._writer = CheckpointWriter(runtime.checkpoint_seconds)
        self.steps_done = 0
        metrics_bytes = self._resume()
        if not metrics_bytes:
            self._standardise()
        self._metrics = MetricsLog(folder, metrics_bytes, self.steps_done)

    @property
    def device_name(self) -> str:
        """What computes, for the record."""
        return device_name(self._device) + linear_name(self._linear)

    def train(self, progress: Progress) -> None:
        """Take all steps that are left.

        Raises:
            StoppedError: a signal asked for it; the state is saved.
            IjepaError: the loss is not finite.
        """
        records: list[dict[str, Any]] = []
        todo = range(self.steps_done, self._config.steps)
        with (
            contextlib.closing(self._writer),
            computing(self._device, linear=self._linear, shapes_vary=True),
            stop_requests() as asked,
            contextlib.closing(self._made(todo)) as made,
        ):
            for batch in made:
                records.append(self._step(batch.step, batch.images))
                last = self.steps_done == self._config.steps
                if not (last or asked or self.steps_done % FLUSH_STEPS == 0):
                    continue
                self._flush(records, progress)
                records = []
                if last or asked or self._writer.is_due():
                    self._save()
                if asked and not last:
                    self._writer.wait()
                    self._metrics.close()
                    raise asked.stopped(self.steps_done, self._config.steps)
        self._metrics.close()

    def _made(self, todo: range) -> Generator[Batch]:
        """Batches of these steps; closed at once when the loop ends, so that no worker lingers."""
        workers, on_gpu = num_workers(self._runtime, self._device), self._device.type == "cuda"
        yield from batches(self._batches, todo, workers, pin_memory=on_gpu)

    def _step(self, step: int, images: Tensor) -> dict[str, Any]:
        """One update; returns its record, the loss still on the device."""
        pixels, condition = self._blocks(step, images)
        seed = int(stream(self._config.seed, NOISE, step).integers(2**62))
        draws = draw_flow(
            len(pixels), self._config.image_px, torch.Generator().manual_seed(seed)
        ).to(self._device)
        lr = learning_rate(step / self._config.steps, self._config.lr, 0.0, self._config.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        with self._precision():
            loss = flow_loss(self._decoder, pixels, condition, draws)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self.steps_done = step + 1
        average_weights(self.averaged, self._decoder, self.steps_done, self._config.ema)
        return {"step": self.steps_done, "lr": lr, "loss": loss.detach()}

    def _blocks(self, step: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and conditions of one block of each image of a step."""
        rng = stream(self._config.seed, MASKS, step)
        run = self._source.config
        masks = draw_blocks(run, len(images), rng).to(self._device)
        on_device = images.to(self._device, non_blocking=True)
        boxes = block_boxes(masks.targets[0], run.grid, run.encoder.patch_px)
        seen = normalise(on_device, self._data.mean, self._data.std)
        with self._precision():
            condition = CONDITIONS[self._config.condition](self._jepa, seen, masks)
        return cut_blocks(on_device, boxes, self._config.image_px), condition.float()

    def _standardise(self) -> None:
        """From the conditions of the first steps."""
        count = -(-self._config.statistics_images // self._config.batch_size)
        with contextlib.closing(self._made(range(count))) as made:
            found = torch.cat([self._blocks(batch.step, batch.images)[1] for batch in made])
        self._decoder.standardise(found)
        self.averaged.standardise(found)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def _flush(self, records: list[dict[str, Any]], progress: Progress) -> None:
        losses = torch.stack([record["loss"] for record in records])
        if not losses.isfinite().all():
            raise IjepaError(
                f"The loss is not finite at step {records[-1]['step']} or shortly before; lower lr."
            )
        for record, loss in zip(records, losses.tolist(), strict=True):
            self._metrics.append(record | {"loss": loss})
        shown = {"loss": float(losses.mean()), "lr": records[-1]["lr"]}
        progress("train decoder steps", self.steps_done, self._config.steps, shown)

    def _save(self) -> None:
        path = self._folder / LAST
        path.parent.mkdir(exist_ok=True)
        body = {
            "step": self.steps_done,
            "config": self._config.model_dump(mode="json"),
            "model": self._decoder.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "encoder_sha256": self._sha256,
            "metrics_bytes": self._metrics.flush(),
        }
        self._writer.save([path], body)

    def _resume(self) -> int:
        """Take up the last checkpoint, if there is one; returns its metrics' length in bytes."""
        path = self._folder / LAST
        if not path.exists():
            return 0
        body = load_state(path)
        load_weights(self._decoder, body["model"], path)
        load_weights(self.averaged, body["averaged"], path)
        self._optimizer.load_state_dict(body["optimizer"])
        self.steps_done = body["step"]
        log.info("going on after step %d of %d", self.steps_done, self._config.steps)
        return int(body["metrics_bytes"])
