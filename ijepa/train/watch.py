"""Health checks of the encoders, always on the same images: do they learn, or collapse?"""

import functools
import logging
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ijepa.config import PretrainConfig
from ijepa.data.decode import decode_image
from ijepa.data.loader import ViewPlan, evaluation_view
from ijepa.data.shards import Sample
from ijepa.distributed import from_rank_0, gather_rows, uses_bf16
from ijepa.jepa.augment import normalise
from ijepa.jepa.masks import sample_masks
from ijepa.jepa.model import IJepa, last_layer
from ijepa.jepa.monitor import exact, health, lidar, neighbour_accuracy
from ijepa.jepa.rng import VIEWS, stream
from ijepa.jepa.verdict import Health, verdict
from ijepa.world import World

SHOWN_IMAGES, SHOWN_NEIGHBOURS = 4, 5  # in pictures
BATCH = 32  # more do not fit into the caches of a CPU
LIDAR_IMAGES, LIDAR_VIEWS = 64, 8  # fewer than the metric's authors take, to be quick

log = logging.getLogger(__name__)


class CheckedImages(NamedTuple):
    """Some images of a health check, for pictures; on the CPU."""

    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]  # (n, height, width, 3)
    tokens: np.ndarray[tuple[int, ...], np.dtype[np.float32]]  # (n, rows, columns, dim), targets'
    # (n, k, height, width, 3), the nearest of the checked images by cosine
    neighbours: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Watch:
    """The images of health checks, and the health of the fresh encoder on them."""

    def __init__(
        self,
        config: PretrainConfig,
        samples: list[Sample],
        device: torch.device,
        world: World = World(),  # noqa: B008  # a constant
    ) -> None:
        self._config, self._samples, self._device, self._world = config, samples, device, world
        labels = torch.tensor([sample.labels.get(config.watch.label, -1) for sample in samples])
        self._known = (labels >= 0).nonzero().flatten().to(device)  # places of labelled images
        self._labels = labels[labels >= 0].to(device)
        self._pixels: Tensor | None = None  # (images, C, height, width), on the device
        self._bf16 = uses_bf16(config.optimization.precision, device)
        self.first: Health | None = None  # of the first check; set by it, or by a resumed run
        self.checked: CheckedImages | None = None  # of the newest check with pictures

    @torch.no_grad()
    def check(
        self, model: IJepa, step: int = 0, *, with_pictures: bool = False
    ) -> dict[str, float]:
        """Measure both encoders, and warn if the target encoder collapses; changes no training.

        `with_pictures` also sets `checked`. All processes must call it: each encodes some of the
        images. A `FloatingPointError` says what is not finite.
        """
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            if self._pixels is None:
                data = self._config.data
                plan = ViewPlan(data.image_px, data.eval_crop_fraction)
                views = [evaluation_view(decode_image(s.image), plan) for s in self._samples]
                self._pixels = torch.cat(views).to(self._device)
            target = self._pooled(model, self._pixels, which="target_encoder")
            if not target.isfinite().all():
                raise FloatingPointError("The target encoder's features are not finite")
            predicted = self._predicted_views(model, self._pixels[:LIDAR_IMAGES])
            if not predicted.isfinite().all():
                raise FloatingPointError("The predictions are not finite")
            context = self._pooled(model, self._pixels, which="encoder")
            self.checked = self._shown(model, self._pixels, target) if with_pictures else None
        now = health(target)
        self.first = self.first or now
        if step and (warning := verdict(now, self.first)):
            log.warning("step %d: %s", step, warning)
        numbers = {
            **now._asdict(),
            "lidar": lidar(predicted),
            "context_target_cosine": float(
                F.cosine_similarity(exact(context), exact(target), dim=1).mean()
            ),
        }
        if len(self._labels) > 1:  # all processes need one answer: it decides what they save
            count = functools.partial(neighbour_accuracy, target[self._known], self._labels)
            numbers["neighbour_accuracy"] = from_rank_0(self._world, count)
            if len(self._labels) < len(target):
                numbers["labelled_images"] = len(self._labels)
        return numbers

    def _shown(self, model: IJepa, pixels: Tensor, features: Tensor) -> CheckedImages:
        shown = pixels[:SHOWN_IMAGES]
        tokens = model.target_encoder(self._normalised(shown)).float().cpu()
        unit = F.normalize(features, dim=1)
        similarity = (unit[: len(shown)] @ unit.T).fill_diagonal_(-torch.inf)  # itself
        nearest = similarity.topk(min(SHOWN_NEIGHBOURS, len(unit) - 1), dim=1).indices
        neighbours = torch.unflatten(self._rgb(pixels[nearest.flatten()]), 0, nearest.shape)
        grid = tokens.unflatten(1, self._config.grid)
        return CheckedImages(self._rgb(shown).numpy(), grid.numpy(), neighbours.numpy())

    def _rgb(self, pixels: Tensor) -> Tensor:
        """(n, height, width, 3) uint8; for other than RGB images the first channels, normalised."""
        if channels := self._config.data.channels:
            chosen = [min(number, channels - 1) for number in range(3)]
            shares = self._normalised(pixels)[:, chosen] / 4 + 0.5
            pixels = (255 * shares.clamp(0, 1)).round().to(torch.uint8)
        return pixels.movedim(1, -1).cpu()

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self._config.data.mean, self._config.data.std)

    def _pooled(self, model: IJepa, pixels: Tensor, which: str) -> Tensor:
        """(images, dim) float32 of all images; each process encodes as many, some twice."""
        encoder, size = getattr(model, which), self._world.size
        share = -(-len(pixels) // size)
        first = self._world.rank * share
        mine = pixels[torch.arange(first, first + share, device=pixels.device) % len(pixels)]
        pooled = [
            encoder(self._normalised(part)).mean(1).float() for part in torch.split(mine, BATCH)
        ]
        return gather_rows(torch.cat(pooled), self._world)[: len(pixels)]

    def _predicted_views(self, model: IJepa, pixels: Tensor) -> Tensor:
        """(images, views, dim): average predictions for each image from several contexts."""
        images = self._normalised(pixels)
        masks = self._config.masks.model_copy(update={"group_size": len(images)})
        views = []
        for view in range(LIDAR_VIEWS):
            rng = stream(self._config.seed, VIEWS, view)
            [group] = sample_masks(self._config.grid, len(images), masks, rng)
            predicted = model.predictions(images, group.to(self._device)).float()
            predicted = last_layer(predicted, model.config)
            blocks = torch.unflatten(predicted, 0, (-1, len(images)))  # (M, images, T, dim)
            views.append(blocks.mean(dim=(0, 2)))
        return torch.stack(views, dim=1)
