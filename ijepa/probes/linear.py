"""Linear heads trained by SGD or LARS on stored features, all in one pass.

Source: paper A.2; the protocols themselves are data, in `protocols`.
"""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ijepa.compute import computing, pick_linear
from ijepa.distributed import moved, pick_device, uses_bf16
from ijepa.probes.arrays import Asked, Fit, Ints, Kept, Labelled, Rows, Stored, blocks, hold_out
from ijepa.probes.heads import Heads
from ijepa.probes.protocols import LINEAR_PROTOCOLS, RATE_BATCH, LinearProtocol
from ijepa.progress import Progress

CONCATENATED = 4  # layers, paper A.2
ROOM = 0.6  # of a GPU's free memory, for features; the rest is for heads and what they compute
SAVE_SECONDS = 120.0
ORDER = 2  # tells the draws of this file apart from others of the same seed


class DeviceRows:
    """Stored features that stand on a device as a whole, so that no step waits for a disk."""

    def __init__(self, features: Rows, device: torch.device, progress: Progress) -> None:
        """Read the last `CONCATENATED` layers of all rows once."""
        rows, layers, dim = features.shape[0], _layers(features), features.shape[2]
        self.shape, self._device = (rows, layers, dim), device
        dtype = torch.from_numpy(features.read(np.arange(0), layers)).dtype
        self._values = torch.empty(self.shape, dtype=dtype, device=device)
        for some in blocks(rows):
            block = features.read(np.arange(rows)[some], layers)
            self._values[some].copy_(torch.from_numpy(block))
            progress("load features", min(some.stop, rows), rows)

    def take(self, rows: Ints) -> Tensor:
        """(n, layers, dim) as stored, on the device: some rows, in their order."""
        return self._values[_sent(torch.from_numpy(rows), self._device)]

    def read(self, rows: Ints, layers: int) -> Stored:
        """See `Rows`."""
        found: Stored = self.take(rows)[:, -layers:].cpu().numpy()
        return found


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
    config, progress, kept = asked.config, asked.progress, {} if asked.kept is None else asked.kept
    device = pick_device(asked.device)
    bf16 = uses_bf16(config.precision, device)
    protocol = replace(LINEAR_PROTOCOLS[config.protocol], bf16=bf16)
    classes, numbered = np.unique(train.labels, return_inverse=True)
    train = _loaded(train._replace(labels=numbered.astype(np.int64)), device, progress)
    test = _loaded(test, device, progress)
    choice, purpose = _state_name("choice", protocol), "choose among"
    if choice not in kept:
        fitted, held = hold_out(train.labels, config.holdout, config.seed)
        some, rest = train.take(fitted), train.take(held)
        heads = train_heads(some, protocol, config.seed, device, progress, kept, purpose)
        right = (_predictions(heads, rest, device) == rest.labels).mean(axis=1)
        kept.pop(_state_name(f"{purpose} heads", protocol), None)
        kept[choice] = {"accuracy": right.tolist()}
    accuracy = kept[choice]["accuracy"]
    best = int(np.argmax(accuracy))
    heads = train_heads(train, protocol, config.seed, device, progress, kept, "train")
    predictions = classes[_predictions(heads, test, device)]
    on_test = (predictions == test.labels).mean(axis=1)
    choices = {"head": protocol.heads[best].name, "held_out_accuracy": accuracy[best]}
    said = f"batches of all {len(train.labels):,} images, not of {protocol.batch:,}"
    deviations = (said,) if len(train.labels) < protocol.batch else ()
    found, precision = predictions[best][np.newaxis], "bf16" if bf16 else "fp32"
    return [Fit("", found, choices, float(on_test.max()), deviations, precision)]


def train_heads(
    train: Labelled,
    protocol: LinearProtocol,
    seed: int,
    device: torch.device,
    progress: Progress,
    kept: Kept | None = None,
    purpose: str = "train",
) -> Heads:
    """All heads of a protocol, trained on one view of each image an epoch.

    Labels count from 0 without gaps. The seed is of the heads' weights, of the order of images and
    of their views. Every two minutes and at the end the state of the heads is left in `kept`, under
    a name of their purpose; started again, they go on from there, to the same heads.
    """
    dim, kept = train.features.shape[2], {} if kept is None else kept
    dims = {"last": dim, "concat": dim * _layers(train.features)}
    heads = Heads(protocol, dims, int(train.labels.max()) + 1, seed, device)
    labels, task = torch.from_numpy(train.labels).to(device), f"{purpose} heads"
    plan, state, done = _Plan(protocol, len(labels)), _state_name(task, protocol), 0
    if state in kept:
        heads.take_up(kept[state])
        done = int(kept[state]["steps"])
    saved, task = time.monotonic(), f"{task} steps"
    progress(task, done, plan.steps)
    shown, seen = itertools.tee(itertools.islice(_steps(plan, train.views, seed), done, None))
    read = _inputs(train.features, (rows for _, rows in seen), device)
    with computing(device, linear=pick_linear(device, plan.batch, max(dims.values()))):
        for step, ((images, _), inputs) in enumerate(zip(shown, read, strict=True), start=done):
            true = labels[_sent(torch.from_numpy(images), device)]
            heads.step(inputs, true, plan.factor(step))
            progress(task, step + 1, plan.steps)
            if step + 1 == plan.steps or time.monotonic() - saved >= SAVE_SECONDS:
                kept[state] = {"steps": step + 1, **heads.state()}
                saved = time.monotonic()
    return heads


def _state_name(name: str, protocol: LinearProtocol) -> str:
    """Name of a kept state; a GPU's work in bfloat16 does not go on in float32 on a CPU."""
    return f"{name} bf16" if protocol.bf16 else name


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
    every = (rows[some] for some in blocks(len(rows)))
    parts = [heads.predict(inputs) for inputs in _inputs(data.features, every, device)]
    found: Ints = torch.cat(parts, dim=1).cpu().numpy()
    return found


def _loaded(data: Labelled, device: torch.device, progress: Progress) -> Labelled:
    """The same with its features on the device, if there is room for them."""
    features, layers = data.features, _layers(data.features)
    itemsize = features.read(np.arange(0), layers).itemsize
    if features.shape[0] * layers * features.shape[2] * itemsize > _room_bytes(device):
        return data
    return data._replace(features=DeviceRows(features, device, progress))


def _room_bytes(device: torch.device) -> int:
    """None on a CPU: there may be more features than memory holds, and they are read in time."""
    return int(ROOM * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def _inputs(
    features: Rows, every: Iterable[Ints], device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """What heads see of some rows after the others: (B, D) by `last` and `concat`."""
    if isinstance(features, DeviceRows):
        found = (features.take(rows) for rows in every)
    else:
        found = (_sent(batch, device) for batch in _read_ahead(features, every, device))
    for batch in found:
        values = batch.float()
        yield {"last": values[:, -1].contiguous(), "concat": values.flatten(1)}


def _read_ahead(features: Rows, every: Iterable[Ints], device: torch.device) -> Iterator[Tensor]:
    """(B, layers, dim) on the host, of some rows after the others; the next are read meanwhile."""

    def read(rows: Ints) -> Tensor:
        return _pinned(torch.from_numpy(features.read(rows, _layers(features))), device)

    pending: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for rows in every:
            pending.append(reader.submit(read, rows))
            if len(pending) > 1:
                yield pending.popleft().result()
        yield from (last.result() for last in pending)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """The same on the device, without waiting for the copy."""
    return moved(_pinned(values, device), device)


def _pinned(values: Tensor, device: torch.device) -> Tensor:
    """Where a GPU can fetch it by itself; as it is for a CPU."""
    return values.pin_memory() if device.type == "cuda" else values


def _layers(features: Rows) -> int:
    return min(CONCATENATED, features.shape[1])
