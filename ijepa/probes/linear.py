"""Linear heads trained by SGD or LARS on stored features, all in one pass.

Source: paper A.2; the protocols themselves stand in `linear_protocols`.
"""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ijepa.distributed import pick_device
from ijepa.probes.arrays import (
    FORGETFUL,
    Asked,
    Fit,
    Floats,
    Ints,
    Keep,
    Labelled,
    Stored,
    hold_out,
)
from ijepa.probes.heads import Heads
from ijepa.probes.linear_protocols import LINEAR_PROTOCOLS, RATE_BATCH, LinearProtocol
from ijepa.progress import Progress

CONCATENATED = 4  # layers, paper A.2
SCORED_AT_ONCE = 4096  # images
SAVE_SECONDS = 120.0
STATE = "{} heads"  # kept, by purpose
ORDER = 2  # tells the draws of this file apart from others of the same seed


class _Plan(NamedTuple):
    """Which images each step sees."""

    protocol: LinearProtocol
    images: int

    @property
    def batch(self) -> int:
        return min(self.protocol.batch, self.images)

    @property
    def steps_per_epoch(self) -> int:
        """Batch norm needs two images, so a last batch of one is left out."""
        whole, rest = divmod(self.images, self.batch)
        return whole + (rest > 1)

    @property
    def steps(self) -> int:
        return self.protocol.steps or self.protocol.epochs * self.steps_per_epoch

    def factor(self, step: int) -> float:
        """On learning rates: the schedule's, and the batch's."""
        epoch, epochs = step // self.steps_per_epoch, self.steps / self.steps_per_epoch
        done = epoch / epochs if self.protocol.per_epoch else step / self.steps
        return self.protocol.schedule(done) * self.batch / RATE_BATCH


def linear(train: Labelled, test: Labelled, asked: Asked) -> list[Fit]:
    """Choose a head on a held-out part of train, then train all heads on all of train.

    The chosen head is scored on the test set. `best_on_test` is what papers report: the best of all
    heads on the test set itself.
    """
    config, progress, keep = asked.config, asked.progress, asked.keep
    protocol, device = LINEAR_PROTOCOLS[config.protocol], pick_device(asked.device)
    classes, numbered = np.unique(train.labels, return_inverse=True)
    train = train._replace(labels=numbered.astype(np.int64))
    accuracy = _held_out_accuracy(train, protocol, asked, device)
    best = int(np.argmax(accuracy))
    heads = train_heads(train, protocol, config.seed, device, progress, keep, "train")
    predictions = classes[_predictions(heads, test, device)]
    on_test = (predictions == test.labels).mean(axis=1)
    choices = {"head": protocol.heads[best].name, "held_out_accuracy": float(accuracy[best])}
    keep.drop(STATE.format("train"))
    departures = _departures(protocol, len(train.labels))
    return [Fit("", predictions[best][np.newaxis], choices, float(on_test.max()), departures)]


def _held_out_accuracy(
    train: Labelled, protocol: LinearProtocol, asked: Asked, device: torch.device
) -> Floats:
    """(heads,) of heads trained on the larger part of train, on the rest of it."""
    config, purpose, keep = asked.config, "choose among", asked.keep
    if (known := keep.load("choice")) is not None:
        return np.array(known["accuracy"])
    fitted, held = hold_out(train.labels, config.holdout, config.seed)
    some, held_out = train.take(fitted), train.take(held)
    heads = train_heads(some, protocol, config.seed, device, asked.progress, keep, purpose)
    found: Floats = (_predictions(heads, held_out, device) == held_out.labels).mean(axis=1)
    keep.save("choice", {"accuracy": found.tolist()})
    keep.drop(STATE.format(purpose))
    return found


def train_heads(
    train: Labelled,
    protocol: LinearProtocol,
    seed: int,
    device: torch.device,
    progress: Progress,
    keep: Keep = FORGETFUL,
    purpose: str = "train",
) -> Heads:
    """All heads of a protocol, trained on one view of each image an epoch.

    Every two minutes and at the end their state is kept; started again, they go on from there, to
    the same heads.

    Args:
        train: labels count from 0 without gaps.
        protocol: which heads, trained how.
        seed: of the heads' weights, of the order of images and of their views.
        device: where they are trained.
        progress: hears of every step.
        keep: of their state.
        purpose: names the state, and the task that progress hears of.
    """
    dim = train.features.shape[2]
    dims = {"last": dim, "concat": dim * _layers(train)}
    heads = Heads(protocol, dims, int(train.labels.max()) + 1, seed, device)
    labels = torch.from_numpy(train.labels).to(device)
    plan = _Plan(protocol, len(labels))
    done, saved = _taken_up(heads, keep, purpose), time.monotonic()
    progress(f"{purpose} heads steps", done, plan.steps)
    shown, seen = itertools.tee(itertools.islice(_steps(plan, train.views, seed), done, None))
    read = _read_ahead(train, (rows for _, rows in seen))
    for step, ((images, _), features) in enumerate(zip(shown, read, strict=True), start=done):
        heads.step(_inputs(features, device), labels[images], plan.factor(step))
        progress(f"{purpose} heads steps", step + 1, plan.steps)
        if step + 1 == plan.steps or time.monotonic() - saved >= SAVE_SECONDS:
            keep.save(STATE.format(purpose), {"steps": step + 1, **heads.state()})
            saved = time.monotonic()
    return heads


def _taken_up(heads: Heads, keep: Keep, purpose: str) -> int:
    """Bring heads to where an earlier start left them; the number of steps that they have done."""
    state = keep.load(STATE.format(purpose))
    if state is None:
        return 0
    heads.take_up(state)
    return int(state["steps"])


def _steps(plan: _Plan, views: Ints, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Images of each step, and the row of the view of each that this epoch shows."""
    augmented = plan.protocol.augment != "none" and views.shape[1] > 1
    shown = views[:, 1:] if augmented else views[:, :1]
    first = np.random.default_rng([seed, ORDER]).integers(shown.shape[1], size=len(views))
    for step in range(plan.steps):
        epoch, turn = divmod(step, plan.steps_per_epoch)
        if turn == 0:
            order = np.random.default_rng([seed, ORDER, epoch]).permutation(len(views))
        images = order[turn * plan.batch : (turn + 1) * plan.batch]
        yield images, shown[images, (first[images] + epoch) % shown.shape[1]]


def _predictions(heads: Heads, data: Labelled, device: torch.device) -> Ints:
    """(heads, n) class numbers by the evaluation views."""
    rows = data.views[:, 0]
    starts = range(0, len(rows), SCORED_AT_ONCE)
    read = _read_ahead(data, (rows[first : first + SCORED_AT_ONCE] for first in starts))
    parts = [heads.predict(_inputs(features, device)) for features in read]
    found: Ints = torch.cat(parts, dim=1).cpu().numpy()
    return found


def _read_ahead(data: Labelled, every: Iterable[Ints]) -> Iterator[Stored]:
    """(B, layers, dim) of some rows after the others, the next read while these are used."""
    pending: deque[Future[Stored]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for rows in every:
            pending.append(reader.submit(data.features.read, rows, _layers(data)))
            if len(pending) > 1:
                yield pending.popleft().result()
        yield from (last.result() for last in pending)


def _inputs(features: Stored, device: torch.device) -> dict[str, Tensor]:
    found = torch.from_numpy(features).to(device).float()
    return {"last": found[:, -1].contiguous(), "concat": found.flatten(1)}


def _layers(data: Labelled) -> int:
    return min(CONCATENATED, data.features.shape[1])


def _departures(protocol: LinearProtocol, images: int) -> tuple[str, ...]:
    if images >= protocol.batch:
        return ()
    return (f"batches of all {images:,} images, not of {protocol.batch:,}",)
