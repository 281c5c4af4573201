"""Linear heads on patch tokens: the class of every pixel, or its depth.

Logits of patches are upsampled bilinearly to the size of the maps. All heads see the same batches,
read from files while they are trained; the best on a held-out part of train is reported.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ijepa.arrays import Array, Floats, Ints
from ijepa.compute import computing
from ijepa.distributed import pick_device
from ijepa.errors import IjepaError
from ijepa.probes.arrays import (
    CHOOSE,
    SAVE_SECONDS,
    TRAIN,
    Fit,
    ProbeRequest,
    States,
    chunks,
    hold_out,
    smaller_batch,
)
from ijepa.probes.heads import load_state_of, state_of
from ijepa.probes.protocols import DENSE_PROTOCOLS, DenseHead, DenseProtocol

DRAWS, DRAWS_AT_ONCE = 1000, 100  # of the bootstrap, and of exchanges, over images
ROUNDING = 1e-9  # by which differences that are equal may differ
ORDER = 3  # tells the random numbers of this file apart from others of the same seed
EPS = 1e-3  # units of depth, in logarithms
GUESS_IMAGES = 256  # images of train that a constant guess is made of


class Dense(NamedTuple):
    """Images with patch tokens and a map each."""

    tokens: Array  # (rows, patches, dim), mapped
    maps: Array  # (rows, height, width), mapped: classes, or float32 depth, 0 where not known
    rows: Ints  # (n,) of the images, in both
    grid: tuple[int, int]  # rows and columns of patches
    num_classes: int  # 0 for depth

    def read(self, images: Ints, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens (n, patches, dim) float32 and maps (n, height, width) int64 or float32."""
        rows = self.rows[images]
        tokens, maps = self.tokens[rows], self.maps[rows]
        values = torch.from_numpy(maps.astype(np.int64 if self.num_classes else np.float32))
        return torch.from_numpy(tokens).to(device).float(), values.to(device)


class Head(nn.Module):
    """Batch norm or none, and a linear layer on each patch."""

    def __init__(
        self,
        head: DenseHead,
        data: Dense,
        protocol: DenseProtocol,
        depths: tuple[float, float],
        seed: int,
    ) -> None:
        """Draw the weights; depth is a mean of bins between the least and the most of `depths`."""
        super().__init__()
        dim, self._grid, self._depth = data.tokens.shape[2], data.grid, not data.num_classes
        self.norm = nn.BatchNorm1d(dim) if head.norm == "batch" else nn.Identity()
        self.linear = nn.Linear(dim, data.num_classes or protocol.bins)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.linear.weight, 0, 0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)
        if self._depth:
            self.bins: Tensor
            self.register_buffer("bins", torch.linspace(*depths, protocol.bins))

    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (n, classes, height, width), or depth (n, height, width)."""
        outputs: Tensor = self.linear(self.norm(tokens.flatten(0, 1)))
        outputs = outputs.view(len(tokens), *self._grid, -1).permute(0, 3, 1, 2)
        if not self._depth:
            logits: Tensor = F.interpolate(outputs, tuple(size), mode="bilinear")
            return logits
        # DINOv2 upsamples by 4 before the linear layer, which gives the same as after it.
        outputs = F.interpolate(outputs, scale_factor=4, mode="bilinear")
        weights = outputs.relu() + 0.1
        depth = torch.einsum("nbhw,b->nhw", weights / weights.sum(1, keepdim=True), self.bins)
        upsampled: Tensor = F.interpolate(depth[:, None], tuple(size), mode="bilinear")[:, 0]
        return upsampled

    def loss(self, tokens: Tensor, maps: Tensor) -> Tensor:
        """Mean cross-entropy over known pixels, or the scale-invariant loss of known depths."""
        answer = self.forward(tokens, maps.shape[1:])
        if not self._depth:
            known = maps < answer.shape[1]
            each = F.cross_entropy(answer, maps.where(known, 0), reduction="none")
            mean_known: Tensor = (each * known).sum() / known.sum().clamp(min=1)
            return mean_known
        known = maps > 0
        off = (answer + EPS).log() - (maps.where(known, 1) + EPS).log()
        count = known.sum().clamp(min=2)
        mean = (off * known).sum() / count
        variance = ((off - mean).square() * known).sum() / (count - 1)
        return torch.sqrt(variance + 0.15 * mean.square() + 1e-12)


def dense(train: Dense, test: Dense, request: ProbeRequest) -> list[Fit]:
    """Choose a head on a held-out part of train, then train all heads on all of train.

    The predictions of the fit are sums over pixels, a row a test image, see `measure`.
    """
    config = request.config
    states = {} if request.states is None else request.states
    protocol = DENSE_PROTOCOLS[config.name][config.protocol]
    if "choice" not in states:
        fitted, held = hold_out(np.zeros(len(train.rows), np.int64), config.holdout, config.seed)
        some, rest = (train._replace(rows=train.rows[part]) for part in (fitted, held))
        heads = _train_heads(some, protocol, request, states, CHOOSE)
        values = _headlines(_sums(heads, rest, protocol.batch, "the held-out part of train"))
        states.pop(CHOOSE, None)
        states["choice"] = {"values": values}
    values = states["choice"]["values"]
    best = int(np.argmax(values))
    heads = _train_heads(train, protocol, request, states, TRAIN)
    sums = _sums(heads, test, protocol.batch, "the test images")
    choices = {"head": protocol.heads[best].name, "held_out": values[best]}
    deviations = smaller_batch(len(train.rows), protocol.batch)
    return [Fit("", sums[best], choices, max(_headlines(sums)), deviations)]


def _train_heads(
    data: Dense, protocol: DenseProtocol, request: ProbeRequest, states: States, name: str
) -> list[Head]:
    """All heads of a protocol, each with its own optimizer, in evaluation mode.

    Their state is put into `states` under `name` and read from there, as `linear.train_heads` does.
    """
    device, seed = pick_device(request.device), request.config.seed
    seeds = np.random.SeedSequence([seed, ORDER]).generate_state(len(protocol.heads))
    depths = protocol.depths or (0.0, 0.0)
    if not (data.num_classes or protocol.depths):
        deepest = max(float(data.maps[row].max()) for row in data.rows.tolist())
        depths = EPS, max(deepest, 2 * EPS)
    heads = [
        Head(settings, data, protocol, depths, own).to(device)
        for settings, own in zip(protocol.heads, seeds.tolist(), strict=True)
    ]
    optimizers = [
        torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=protocol.weight_decay)
        for head, settings in zip(heads, protocol.heads, strict=True)
    ]
    done = 0
    if name in states:
        load_state_of(heads, optimizers, states[name])
        done = int(states[name]["steps"])
    images, saved = len(data.rows), time.monotonic()
    batch = min(protocol.batch, images)
    with computing(device):
        for step in range(done, protocol.steps):
            epoch, turn = divmod(step, images // batch)
            if turn == 0 or step == done:
                order = np.random.default_rng([seed, ORDER, epoch]).permutation(images)
            tokens, maps = data.read(order[turn * batch :][:batch], device)
            factor = protocol.schedule(step / protocol.steps)
            for head, settings, optimizer in zip(heads, protocol.heads, optimizers, strict=True):
                optimizer.zero_grad()
                torch.autograd.backward(head.loss(tokens, maps))
                if protocol.clip:
                    nn.utils.clip_grad_norm_(head.parameters(), protocol.clip)
                optimizer.param_groups[0]["lr"] = settings.lr * factor
                optimizer.step()
            request.progress(f"{name} steps", step + 1, protocol.steps)
            if step + 1 == protocol.steps or time.monotonic() - saved >= SAVE_SECONDS:
                states[name] = state_of(heads, optimizers) | {"steps": step + 1}
                saved = time.monotonic()
    return [head.eval() for head in heads]


@torch.inference_mode()
def _sums(heads: Sequence[Head], data: Dense, batch: int, what: str) -> list[Floats]:
    """For each head (n, m): sums over the pixels of each image that `measure` adds up.

    Raises:
        IjepaError: no pixel of these images has a known class or depth; `what` describes them.
    """
    by_head: list[list[Floats]] = [[] for _ in heads]
    for chunk in chunks(len(data.rows), batch):
        images = np.arange(len(data.rows))[chunk]
        tokens, maps = data.read(images, heads[0].linear.weight.device)
        for sums, head in zip(by_head, heads, strict=True):
            answers = head(tokens, maps.shape[1:])
            answers = answers.argmax(dim=1) if data.num_classes else answers
            for answer, true in zip(answers, maps, strict=True):
                sums.append(image_sums(answer.cpu().numpy(), true.cpu().numpy(), data.num_classes))
    if not np.any(by_head[0]):
        raise IjepaError(f"No pixel of {what} has a known class or depth; give other images.")
    return [np.stack(sums) for sums in by_head]


def image_sums(answer: Array, true: Array, num_classes: int) -> Floats:
    """Sums over one image: (3 * classes,) pixels of each class that are right, predicted, true.

    For depth, RMSE, mean absolute relative error and the share within a factor of 1.25, and 1; or
    zeros where no depth is known. `answer` (height, width) are class numbers or depth.
    """
    if num_classes:
        known = true < num_classes
        pairs = true[known].astype(np.int64) * num_classes + answer[known]
        table = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        sums = [table.diagonal(), table.sum(axis=0), table.sum(axis=1)]
        return np.concatenate(sums).astype(float)
    known = true > 0
    if not known.any():
        return np.zeros(4)
    guess, depth = answer[known].astype(float), true[known].astype(float)
    ratio = np.maximum(guess / depth, depth / np.maximum(guess, EPS))
    errors = np.sqrt(np.mean((guess - depth) ** 2)), np.mean(np.abs(guess - depth) / depth)
    return np.array([*errors, np.mean(ratio < 1.25), 1.0])


def measure(sums: Array) -> dict[str, Any]:
    """Measures from (..., m) sums over images; the first is the headline, of which more is better.

    For classes: mIoU over the classes that occur in the truth or in an answer, mean accuracy over
    those in the truth, pixel accuracy, and each class's IoU, NaN if it does not occur. For depth,
    where m is 4: delta1, RMSE and absolute relative error, means over images.
    """
    sums = np.asarray(sums, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        if sums.shape[-1] == 4:  # depth: never a multiple of 3
            rmse, relative, delta = np.moveaxis(sums[..., :3] / sums[..., 3:], -1, 0)
            return {"delta1": delta, "RMSE": rmse, "absolute relative error": relative}
        right, given, true = np.split(sums, 3, axis=-1)
        iou = right / (given + true - right)
        occurs = given + true > 0
        return {
            "mIoU": np.where(occurs, iou, 0).sum(-1) / occurs.sum(-1),
            "mean accuracy": np.where(true > 0, right / true, 0).sum(-1) / (true > 0).sum(-1),
            "pixel accuracy": right.sum(-1) / true.sum(-1),
            "IoU": iou,
        }


def _headlines(every: Sequence[Floats]) -> list[float]:
    return [float(_headline(measure(sums.sum(axis=0)))) for sums in every]


def dense_summary(sums: Floats, rival: Floats | None, names: Sequence[str]) -> dict[str, Any]:
    """Fields of a score from (n, m) sums of test images, with bootstrap intervals over images."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        counts = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS_AT_ONCE)
        drawn.append(measure(counts @ sums))
    values = measure(sums.sum(axis=0))
    by_class = dict(zip(names, values.pop("IoU", np.empty(0)).tolist(), strict=True))
    ends = {
        name: np.nanquantile(np.concatenate([d[name] for d in drawn]), [0.025, 0.975]).tolist()
        for name in values
    }
    headline, second = next(iter(values)), "mean accuracy" if names else "delta1"
    return {
        "headline": headline,
        "measures": {name: (float(value), *ends[name]) for name, value in values.items()},
        "by_class": {name: value for name, value in by_class.items() if np.isfinite(value)},
        "top1": float(values[headline]),
        "top1_interval": tuple(ends[headline]),
        "mean_class": float(values[second]),
        "mean_class_interval": tuple(ends[second]),
        "draws_std": None,
        "p_value": None if rival is None else exchange_p_value(sums, rival),
    }


def exchange_p_value(sums: Floats, rival: Floats) -> float:
    """Two-sided p-value of a paired randomisation test, from (n, m) sums of both encoders.

    If both are alike, it makes no difference which of them answered which image: how often do
    random exchanges differ as much in the headline as what was found?
    """
    rng, total, rivals = np.random.default_rng(0), sums.sum(axis=0), rival.sum(axis=0)

    def difference(one: Array, other: Array) -> Array:
        apart: Array = _headline(measure(one)) - _headline(measure(other))
        return np.abs(apart)

    found, smaller = difference(total, rivals), 0
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        exchanged = rng.integers(0, 2, (DRAWS_AT_ONCE, len(sums))) @ (sums - rival)
        drawn = difference(total - exchanged, rivals + exchanged)
        smaller += int((drawn < found * (1 - ROUNDING)).sum())
    return (DRAWS - smaller + 1) / (DRAWS + 1)


def constant_guess(train: Dense, test: Dense) -> float:
    """Headline of always answering the most frequent class, or median depth, of some of train."""
    some = train.rows[:: max(1, len(train.rows) // GUESS_IMAGES)]
    maps, num_classes = train.maps[some], train.num_classes
    if num_classes:
        guess = np.bincount(maps[maps < num_classes], minlength=num_classes).argmax()
    else:
        guess = np.median(maps[maps > 0])
    answer = np.broadcast_to(guess, maps.shape[1:])
    every = [image_sums(answer, test.maps[row], num_classes) for row in test.rows.tolist()]
    return _headlines([np.stack(every)])[0]


def _headline(measures: dict[str, Any]) -> Array:
    return np.asarray(next(iter(measures.values())))
