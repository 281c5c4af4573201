"""Heads trained on stored features or patch tokens, all in one pass: linear ones, attentive ones.

Source: paper A.2, V-JEPA; the protocols themselves are data, in `protocols`.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ijepa.arrays import Array, Ints
from ijepa.compute import computing, pick_linear
from ijepa.distributed import moved, pick_device, uses_bf16
from ijepa.probes.arrays import (
    ROWS_AT_ONCE,
    SAVE_SECONDS,
    Asked,
    Fit,
    Kept,
    Labelled,
    Rows,
    blocks,
    hold_out,
)
from ijepa.probes.attentive import AttentiveHeads
from ijepa.probes.heads import Heads
from ijepa.probes.protocols import (
    ATTENTIVE_PROTOCOLS,
    LINEAR_PROTOCOLS,
    RATE_BATCH,
    AttentiveProtocol,
    LinearProtocol,
)
from ijepa.progress import Progress

Trained = LinearProtocol | AttentiveProtocol  # protocols of heads that are trained together
CONCATENATED = 4  # layers, paper A.2
ROOM = 0.6  # of a GPU's free memory, for features; the rest is for heads and what they compute
ORDER = 2  # tells the draws of this file apart from others of the same seed


class DeviceRows:
    """Stored features that stand on a device as a whole, so that no step waits for a disk."""

    def __init__(
        self, features: Rows, layers: int, device: torch.device, progress: Progress
    ) -> None:
        """Read the last layers of all rows once."""
        rows, _, dim = features.shape
        self.shape, self._device = (rows, layers, dim), device
        dtype = torch.from_numpy(features.read(np.arange(0), layers)).dtype
        self._values = torch.empty(self.shape, dtype=dtype, device=device)
        for some in blocks(rows, _at_once(layers)):
            block = features.read(np.arange(rows)[some], layers)
            self._values[some].copy_(torch.from_numpy(block))
            progress("load features", min(some.stop, rows), rows)

    def take(self, rows: Ints) -> Tensor:
        """(n, layers, dim) as stored, on the device: some rows, in their order."""
        return self._values[_sent(torch.from_numpy(rows), self._device)]

    def read(self, rows: Ints, layers: int) -> Array:
        """See `Rows`."""
        found: Array = self.take(rows)[:, -layers:].cpu().numpy()
        return found


class _Plan(NamedTuple):
    """Which images each step sees."""

    protocol: Trained
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
        """On learning rates: the schedule's, and the batch's.

        Attentive heads, which differ in their schedules, take the share of the training that is
        done.
        """
        if isinstance(self.protocol, AttentiveProtocol):
            return step / self.steps
        epoch, epochs = step // self.steps_per_epoch, self.steps / self.steps_per_epoch
        done = epoch / epochs if self.protocol.per_epoch else step / self.steps
        return self.protocol.schedule(done) * self.batch / RATE_BATCH


def linear(train: Labelled, test: Labelled, asked: Asked) -> list[Fit]:
    """Linear heads on pooled features, see `_chosen`."""
    return _chosen(LINEAR_PROTOCOLS[asked.config.protocol], train, test, asked)


def attentive(train: Labelled, test: Labelled, asked: Asked) -> list[Fit]:
    """Attentive heads on patch tokens (`TokenRows`), see `_chosen`."""
    protocol, dim = ATTENTIVE_PROTOCOLS[asked.config.protocol], train.features.shape[2]
    [fit] = _chosen(protocol, train, test, asked)
    num_heads = math.gcd(dim, protocol.num_heads)
    said = f"{num_heads} heads of attention, not {protocol.num_heads}: tokens are {dim:,} wide"
    return [fit._replace(deviations=fit.deviations + (said,) * (num_heads < protocol.num_heads))]


def _chosen(named: Trained, train: Labelled, test: Labelled, asked: Asked) -> list[Fit]:
    """Choose a head on a held-out part of train, then train all heads on all of train.

    The chosen head is scored on the test set. `best_on_test` is what papers report: the best of all
    heads on the test set itself.
    """
    config, progress, kept = asked.config, asked.progress, {} if asked.kept is None else asked.kept
    device = pick_device(asked.device)
    bf16 = uses_bf16(config.precision, device)
    protocol = replace(named, bf16=bf16)
    classes, numbered = np.unique(train.labels, return_inverse=True)
    train = train._replace(labels=numbered.astype(np.int64))
    train, test = (_loaded(data, protocol, device, progress) for data in (train, test))
    choice, purpose = _state_name("choice", protocol), "choose among"
    if choice not in kept:
        fitted, held = hold_out(train.labels, config.holdout, config.seed)
        some, rest = train.take(fitted), train.take(held)
        heads = train_heads(some, protocol, config.seed, device, progress, kept, purpose)
        right = (_predictions(heads, rest, protocol, device) == rest.labels).mean(axis=1)
        kept.pop(_state_name(f"{purpose} heads", protocol), None)
        kept[choice] = {"accuracy": right.tolist()}
    accuracy = kept[choice]["accuracy"]
    best = int(np.argmax(accuracy))
    heads = train_heads(train, protocol, config.seed, device, progress, kept, "train")
    predictions = classes[_predictions(heads, test, protocol, device)]
    on_test = (predictions == test.labels).mean(axis=1)
    choices = {"head": protocol.heads[best].name, "held_out_accuracy": accuracy[best]}
    said = f"batches of all {len(train.labels):,} images, not of {protocol.batch:,}"
    deviations = (said,) if len(train.labels) < protocol.batch else ()
    found, precision = predictions[best][np.newaxis], "bf16" if bf16 else "fp32"
    return [Fit("", found, choices, float(on_test.max()), deviations, precision)]


def train_heads(
    train: Labelled,
    protocol: Trained,
    seed: int,
    device: torch.device,
    progress: Progress,
    kept: Kept | None = None,
    purpose: str = "train",
) -> Heads | AttentiveHeads:
    """All heads of a protocol, trained on one view of each image an epoch.

    Labels count from 0 without gaps. The seed is of the heads' weights, of the order of images and
    of their views. Every two minutes and at the end the state of the heads is left in `kept`, under
    a name of their purpose; started again, they go on from there, to the same heads.
    """
    dim, kept = train.features.shape[2], {} if kept is None else kept
    dims = {"last": dim, "concat": dim * _layers(train.features, protocol)}
    classes = int(train.labels.max()) + 1
    heads: Heads | AttentiveHeads
    if isinstance(protocol, AttentiveProtocol):
        heads = AttentiveHeads(protocol, dim, classes, seed, device)
    else:
        heads = Heads(protocol, dims, classes, seed, device)
    labels, task = torch.from_numpy(train.labels).to(device), f"{purpose} heads"
    plan, state, done = _Plan(protocol, len(labels)), _state_name(task, protocol), 0
    if state in kept:
        heads.take_up(kept[state])
        done = int(kept[state]["steps"])
    saved, task = time.monotonic(), f"{task} steps"
    progress(task, done, plan.steps)
    shown, seen = itertools.tee(itertools.islice(_steps(plan, train.views, seed), done, None))
    read = _inputs(train.features, protocol, (rows for _, rows in seen), device)
    with computing(device, linear=pick_linear(device, plan.batch, max(dims.values()))):
        for step, ((images, _), inputs) in enumerate(zip(shown, read, strict=True), start=done):
            true = labels[_sent(torch.from_numpy(images), device)]
            heads.step(inputs, true, plan.factor(step))
            progress(task, step + 1, plan.steps)
            if step + 1 == plan.steps or time.monotonic() - saved >= SAVE_SECONDS:
                kept[state] = {"steps": step + 1, **heads.state()}
                saved = time.monotonic()
    return heads


def _state_name(name: str, protocol: Trained) -> str:
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


def _predictions(
    heads: Heads | AttentiveHeads, data: Labelled, protocol: Trained, device: torch.device
) -> Ints:
    """(heads, n) class numbers by the evaluation views."""
    rows, at_once = data.views[:, 0], _at_once(_layers(data.features, protocol))
    every = (rows[some] for some in blocks(len(rows), at_once))
    parts = [heads.predict(inputs) for inputs in _inputs(data.features, protocol, every, device)]
    found: Ints = torch.cat(parts, dim=1).cpu().numpy()
    return found


def _loaded(
    data: Labelled, protocol: Trained, device: torch.device, progress: Progress
) -> Labelled:
    """The same with its features on the device, if there is room for them."""
    features, layers = data.features, _layers(data.features, protocol)
    itemsize = features.read(np.arange(0), layers).itemsize
    if features.shape[0] * layers * features.shape[2] * itemsize > _room_bytes(device):
        return data
    return data._replace(features=DeviceRows(features, layers, device, progress))


def _room_bytes(device: torch.device) -> int:
    """None on a CPU: there may be more features than memory holds, and they are read in time."""
    return int(ROOM * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def _inputs(
    features: Rows, protocol: Trained, every: Iterable[Ints], device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """What heads see of some rows after the others.

    Linear heads see (B, D) by `last` and `concat`, attentive ones `tokens` (B, N, D), as stored.
    """
    layers = _layers(features, protocol)
    if isinstance(features, DeviceRows):
        found = (features.take(rows) for rows in every)
    else:
        found = (_sent(batch, device) for batch in _read_ahead(features, layers, every, device))
    for batch in found:
        if isinstance(protocol, AttentiveProtocol):
            yield {"tokens": batch}
            continue
        values = batch.float()
        yield {"last": values[:, -1].contiguous(), "concat": values.flatten(1)}


def _read_ahead(
    features: Rows, layers: int, every: Iterable[Ints], device: torch.device
) -> Iterator[Tensor]:
    """(B, layers, dim) on the host, of some rows after the others; the next are read meanwhile."""

    def read(rows: Ints) -> Tensor:
        return _pinned(torch.from_numpy(features.read(rows, layers)), device)

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


def _layers(features: Rows, protocol: Trained) -> int:
    """How many of the last layers heads see; all patches."""
    is_linear = isinstance(protocol, LinearProtocol)
    return min(CONCATENATED, features.shape[1]) if is_linear else features.shape[1]


def _at_once(layers: int) -> int:
    """Rows that may be copied at once: fewer where a row is all tokens of an image."""
    return max(1, ROWS_AT_ONCE * CONCATENATED // max(CONCATENATED, layers))
