"""Heads trained on stored features or patch tokens, all in one pass: linear ones, attentive ones.

Source: paper A.2, V-JEPA; the protocols themselves are data, in `protocols`.
"""

import functools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ijepa.arrays import Array, Ints
from ijepa.compute import computing, pick_linear
from ijepa.distributed import moved, pick_device, prefetched, uses_bf16
from ijepa.probes.arrays import (
    CHOOSE,
    ROWS_AT_ONCE,
    SAVE_SECONDS,
    TRAIN,
    Fit,
    LabelledRows,
    ProbeRequest,
    States,
    chunks,
    hold_out,
    smaller_batch,
)
from ijepa.probes.heads import AttentiveHeads, Heads
from ijepa.probes.protocols import PROTOCOLS, AttentiveProtocol, LinearProtocol
from ijepa.progress import Progress

HeadProtocol = LinearProtocol | AttentiveProtocol
CONCATENATED = 4  # layers, paper A.2
ROOM = 0.6  # of a GPU's free memory, for features; the rest is for heads and what they compute
ORDER = 2  # tells the random numbers of this file apart from others of the same seed

log = logging.getLogger(__name__)


class Batches:
    """Which images each step sees, and which view of each: a function of seed and step."""

    def __init__(self, protocol: HeadProtocol, views: Ints, seed: int) -> None:
        """Plan steps on images with these (n, 1 + K) rows of views, see `LabelledRows`."""
        images = len(views)
        self._protocol = protocol
        self.size = min(protocol.batch, images)
        whole, rest = divmod(images, self.size)
        # Batch norm needs two images, so a last batch of one is left out.
        self.steps_per_epoch = whole + 1 if rest > 1 else whole
        self.steps = protocol.steps or protocol.epochs * self.steps_per_epoch
        is_augmented = protocol.augment != "none" and views.shape[1] > 1
        self._views = views[:, 1:] if is_augmented else views[:, :1]
        rng = np.random.default_rng([seed, ORDER])
        self._first_view = rng.integers(self._views.shape[1], size=images)

        @functools.lru_cache(maxsize=2)  # rows are read ahead, perhaps of the next epoch
        def order(epoch: int) -> Ints:
            return np.random.default_rng([seed, ORDER, epoch]).permutation(images)

        self._order = order

    def images(self, step: int) -> Ints:
        """Numbers of the images of a step."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        numbers: Ints = self._order(epoch)[turn * self.size : (turn + 1) * self.size]
        return numbers

    def rows(self, step: int) -> Ints:
        """The row of the view that this epoch shows, for each image of a step."""
        images, epoch = self.images(step), step // self.steps_per_epoch
        views = (self._first_view[images] + epoch) % self._views.shape[1]
        rows: Ints = self._views[images, views]
        return rows

    def share_done(self, step: int) -> float:
        """Share of the training that is done before a step, as the protocol's schedule counts it.

        In whole epochs where learning rates change between epochs only.
        """
        if isinstance(self._protocol, LinearProtocol) and self._protocol.per_epoch:
            return step // self.steps_per_epoch / (self.steps / self.steps_per_epoch)
        return step / self.steps


def choose_and_train(train: LabelledRows, test: LabelledRows, request: ProbeRequest) -> list[Fit]:
    """Choose a head on a held-out part of train, then train all heads on all of train.

    Linear heads take pooled features, attentive ones patch tokens in the place of layers. The
    chosen head is scored on the test set. `best_on_test` is what papers report: the best of all
    heads on the test set itself.
    """
    config, progress, dim = request.config, request.progress, train.features.shape[2]
    protocol: HeadProtocol = PROTOCOLS[config.name][config.protocol]
    deviations = smaller_batch(len(train.labels), protocol.batch)
    if isinstance(protocol, AttentiveProtocol) and dim % protocol.num_heads:
        deviations += (
            f"{math.gcd(dim, protocol.num_heads)} heads of attention, not {protocol.num_heads}: "
            f"tokens are {dim:,} wide",
        )
    states = {} if request.states is None else request.states
    device = pick_device(request.device)
    protocol = replace(protocol, bf16=uses_bf16(config.precision, device))
    if states.get("precision") != {"bf16": protocol.bf16}:
        if states:
            log.warning("begun in another precision, so the probe starts anew")
        states.clear()  # a GPU's work in bfloat16 does not go on in float32 on a CPU
        states["precision"] = {"bf16": protocol.bf16}
    classes, numbered = np.unique(train.labels, return_inverse=True)
    train = train._replace(labels=numbered.astype(np.int64))
    train, test = (_on_device(data, protocol, device, progress) for data in (train, test))
    if "choice" not in states:
        fitted, held = hold_out(train.labels, config.holdout, config.seed)
        rest = train.take(held)
        heads = train_heads(
            train.take(fitted), protocol, config.seed, device, progress, states, CHOOSE
        )
        correct = _predictions(heads, rest, protocol, device) == rest.labels
        states.pop(CHOOSE, None)
        states["choice"] = {"accuracy": correct.mean(axis=1).tolist()}
    accuracy = states["choice"]["accuracy"]
    best = int(np.argmax(accuracy))
    heads = train_heads(train, protocol, config.seed, device, progress, states)
    predictions = classes[_predictions(heads, test, protocol, device)]
    on_test = (predictions == test.labels).mean(axis=1)
    return [
        Fit(
            setting="",
            predictions=predictions[best][np.newaxis],
            choices={"head": protocol.heads[best].name, "held_out_accuracy": accuracy[best]},
            best_on_test=float(on_test.max()),
            deviations=deviations,
            precision="bf16" if protocol.bf16 else "fp32",
        )
    ]


def train_heads(
    train: LabelledRows,
    protocol: HeadProtocol,
    seed: int,
    device: torch.device,
    progress: Progress,
    states: States | None = None,
    name: str = TRAIN,
) -> Heads | AttentiveHeads:
    """All heads of a protocol, trained on one view of each image an epoch.

    Labels count from 0 without gaps. `seed` draws the heads' weights, the order of the images and
    of their views. Every two minutes and at the end the heads' state is put into `states` under
    `name`; a call that finds it there goes on from it, to the same heads.
    """
    states = {} if states is None else states
    dim, classes = train.features.shape[2], int(train.labels.max()) + 1
    dims = {"last": dim, "concat": dim * _num_layers(train.features, protocol)}
    batches = Batches(protocol, train.views, seed)
    heads: Heads | AttentiveHeads
    if isinstance(protocol, AttentiveProtocol):
        heads = AttentiveHeads(protocol, dim, classes, seed, device)
    else:
        heads = Heads(protocol, dims, classes, batches.size, seed, device)
    task, done = f"{name} steps", 0
    if name in states:
        heads.load_state_dict(states[name])
        done = int(states[name]["steps"])
    progress(task, done, batches.steps)
    labels, saved = torch.from_numpy(train.labels).to(device), time.monotonic()
    rows = (batches.rows(step) for step in range(done, batches.steps))
    inputs_by_step = _inputs(train.features, protocol, rows, device)
    with computing(device, linear=pick_linear(device, batches.size, max(dims.values()))):
        for step, inputs in enumerate(inputs_by_step, start=done):
            true = labels[moved(torch.from_numpy(batches.images(step)), device)]
            heads.step(inputs, true, batches.share_done(step))
            progress(task, step + 1, batches.steps)
            if step + 1 == batches.steps or time.monotonic() - saved >= SAVE_SECONDS:
                states[name] = {"steps": step + 1, **heads.state_dict()}
                saved = time.monotonic()
    return heads


def _predictions(
    heads: Heads | AttentiveHeads, data: LabelledRows, protocol: HeadProtocol, device: torch.device
) -> Ints:
    """(heads, n) class numbers by the evaluation views."""
    rows, at_once = data.views[:, 0], _rows_at_once(_num_layers(data.features, protocol))
    parts = (rows[chunk] for chunk in chunks(len(rows), at_once))
    answers = [heads.predict(inputs) for inputs in _inputs(data.features, protocol, parts, device)]
    numbers: Ints = torch.cat(answers, dim=1).cpu().numpy()
    return numbers


def _on_device(
    data: LabelledRows, protocol: HeadProtocol, device: torch.device, progress: Progress
) -> LabelledRows:
    """The same with its features on the device, if there is room: no step waits for a disk."""
    layers = _num_layers(data.features, protocol)
    stored = data.features[:, -layers:]
    if isinstance(stored, Tensor) or stored.nbytes > _room_bytes(device):
        return data
    dtype, rows = torch.from_numpy(stored[:0].copy()).dtype, len(stored)
    held = torch.empty(stored.shape, dtype=dtype, device=device)
    for chunk in chunks(rows, _rows_at_once(layers)):
        held[chunk].copy_(torch.from_numpy(stored[chunk].copy()))
        progress("load features", min(chunk.stop, rows), rows)
    return data._replace(features=held)


def _room_bytes(device: torch.device) -> int:
    """Memory for features; 0 on a CPU, which may hold fewer and reads them fast enough."""
    return int(ROOM * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def _inputs(
    features: Array | Tensor,
    protocol: HeadProtocol,
    rows_by_step: Iterable[Ints],
    device: torch.device,
) -> Iterator[dict[str, Tensor]]:
    """What heads see of the rows of each step; on a CPU the next rows are read meanwhile.

    Linear heads see (B, D) by `last` and `concat`, attentive ones `tokens` (B, N, D), as stored.
    """
    layers = _num_layers(features, protocol)
    batches: Iterator[Tensor]  # (B, layers, dim)
    if isinstance(features, Tensor):
        batches = (features[moved(torch.from_numpy(rows), device)] for rows in rows_by_step)
    else:
        read = (torch.from_numpy(features[rows, -layers:]) for rows in rows_by_step)
        read_ahead = prefetched((_pinned(batch, device) for batch in read), ahead=1)
        batches = (moved(batch, device) for batch in read_ahead)
    for batch in batches:
        if isinstance(protocol, AttentiveProtocol):
            yield {"tokens": batch}
            continue
        values = batch.float()
        yield {"last": values[:, -1].contiguous(), "concat": values.flatten(1)}


def _pinned(values: Tensor, device: torch.device) -> Tensor:
    """A copy in pinned memory, which a GPU fetches by itself; for a CPU as it is."""
    return values.pin_memory() if device.type == "cuda" else values


def _num_layers(features: Array | Tensor, protocol: HeadProtocol) -> int:
    """Layers that heads see, from the last; attentive heads see all patches in their place."""
    is_linear = isinstance(protocol, LinearProtocol)
    return min(CONCATENATED, features.shape[1]) if is_linear else features.shape[1]


def _rows_at_once(layers: int) -> int:
    """Rows that may be copied at once: fewer where a row is all tokens of an image."""
    return max(1, ROWS_AT_ONCE * CONCATENATED // max(CONCATENATED, layers))
