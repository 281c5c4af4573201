"""Published protocols of probes, and what each probe does; the data itself is `protocols.yaml`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from itertools import product
from typing import Any, Literal, TypeVar

import numpy as np
import yaml
from pydantic.dataclasses import dataclass

from ijepa.config import ProbeConfig
from ijepa.jepa.schedules import warmup_cosine

RATE_BATCH = 256  # to which learning rates of linear heads refer; they grow with the batch
LOW_LEVEL = {"count": "vissl-clevr-count", "dist": "vissl-clevr-dist"}  # by label; paper, table 4

Schedule = Callable[[float], float]  # factor by the share of the training that is done, in [0, 1)
Norm = Literal["none", "batch", "plain-batch"]
P = TypeVar("P")


def steps_down(done: float, *, at: Sequence[float]) -> float:
    """Divided by ten at each of these shares of the training."""
    return 0.1 ** sum(done >= share - 1e-9 for share in at)


def cosine(done: float, *, end: float = 0.0, warmup: float = 0.0) -> float:
    """From 1 to `end` along half a cosine, after a linear rise over the share `warmup`."""
    return warmup_cosine(done, 1.0, end, warmup)


def linearly(done: float, *, warmup: float) -> float:
    """A linear rise over the share `warmup`, times a linear fall to 0."""
    return min(1.0, (done + 1e-9) / warmup) * (1 - done)


def whole_cosine(done: float, *, warmup: float) -> float:
    """A linear rise over the share `warmup`, times half a cosine over all of the training.

    Source: `CosineAnnealingLrUpdaterHook` of mmcv 1, with a linear warmup.
    """
    return min(1.0, (done + 1e-9) / warmup) * cosine(done)


def one_cycle(done: float, *, warmup: float) -> float:
    """As `linearly` over the share `warmup`, then half a cosine over all of the training.

    Source: dinov3:dinov3/eval/segmentation/schedulers.py, `WarmupOneCycleLR`.
    """
    return linearly(done, warmup=warmup) if done < warmup else cosine(done)


SCHEDULES: dict[str, Callable[..., float]] = {
    "steps": steps_down,
    "cosine": cosine,
    "line": linearly,
    "whole-cosine": whole_cosine,
    "one-cycle": one_cycle,
}


@dataclass(frozen=True)
class View:
    """How an image is cut and resized: published by a protocol, or stored in a feature file."""

    crop: str = "center"  # or `squash`, as `ijepa extract --crop` names it
    crop_fraction: float | None = 224 / 256  # of the resized short side that a centre crop keeps
    interpolation: str | None = None  # by which images are resized; None for any
    image_px: tuple[int | tuple[int, int], ...] = (224,)  # sides that are published, or the file's
    features: str | None = None  # if published ones are none that `ijepa extract` stores


@dataclass(frozen=True)
class Head:
    """One way to put a linear classifier on features."""

    features: Literal["last", "concat"]  # the last layer, or the last four side by side
    norm: Norm  # before the linear layer; `plain-batch` has no weights of its own
    lr: float  # at a batch of 256
    weight_decay: float  # of the linear layer, its bias included (VISSL: `regularize_bias: True`)

    @property
    def name(self) -> str:
        """For tables."""
        norm = {"none": "", "batch": "BN + ", "plain-batch": "BN without weights + "}[self.norm]
        return f"{self.features}, {norm}linear, lr {self.lr:g}, decay {self.weight_decay:g}"


@dataclass(frozen=True)
class LinearProtocol:
    """How linear heads are trained, all at once on the same batches."""

    heads: tuple[Head, ...]  # the best is reported
    schedule: Schedule  # factor on learning rates
    source: str  # paper section, or repo:path
    epochs: int = 0  # over the training images; 0 if `steps` counts instead
    steps: int = 0  # batches in all, whatever the number of images; 0 if `epochs` counts
    per_epoch: bool = True  # the factor changes between epochs only
    batch: int = 256  # images
    # SGD with Nesterov momentum or (plain) without; LARS, which adapts matrices only.
    optimizer: Literal["sgd", "sgd-plain", "lars"] = "sgd"
    # PyTorch's own; or normal weights of a standard deviation of 0.01, and no bias.
    init: Literal["torch", "normal"] = "torch"
    norm_eps: float = 1e-5  # of batch norm
    augment: Literal["none", "flip", "rrc-flip"] = "rrc-flip"  # of the training images
    view: View | None = None  # of the test images; None takes any
    bf16: bool = False  # multiplies matrices in bfloat16; no publication says, the run decides

    def rate_factor(self, done: float, batch: int) -> float:
        """Factor on the learning rates of heads, when a share of the training is done."""
        return self.schedule(done) * batch / RATE_BATCH


@dataclass(frozen=True)
class AttentiveSettings:
    """How one attentive head is trained by AdamW."""

    lr: float  # highest, whatever the batch
    weight_decay: float  # at the start
    final_decay: float | None = None  # to which it goes along half a cosine; None keeps it
    start_lr: float | None = None  # of a linear warmup; without one, training starts at `lr`
    warmup: float = 0.0  # as a share of the training

    @property
    def name(self) -> str:
        """For tables."""
        return f"attentive, lr {self.lr:g}, decay {self.weight_decay:g}"

    def at(self, done: float) -> tuple[float, float]:
        """Learning rate and weight decay when a share of the training is done, in [0, 1)."""
        final = self.weight_decay if self.final_decay is None else self.final_decay
        decay = final + (self.weight_decay - final) * cosine(done)
        if self.start_lr is not None and done < self.warmup:
            return self.start_lr + (self.lr - self.start_lr) * done / self.warmup, decay
        return self.lr * cosine((done - self.warmup) / (1 - self.warmup)), decay


@dataclass(frozen=True)
class AttentiveProtocol:
    """How attentive heads on patch tokens are built and trained, all at once."""

    heads: tuple[AttentiveSettings, ...]
    source: str  # repo:path
    depth: int = 1  # the cross-attention block, and self-attention blocks before it
    num_heads: int = 16  # of the attention; fewer where they do not divide the tokens' width
    projects: bool = True  # the cross-attention has an output projection
    decays_all: bool = False  # also biases, norms; else matrices and the query alone
    clip: float | None = 1.0  # norm of a head's gradient
    epochs: int = 20
    steps: int = 0  # batches in all; 0: `epochs` counts
    batch: int = 1024
    augment: str = "none"  # of the training images
    view: View | None = None  # of the test images; None takes any
    bf16: bool = False  # as in `LinearProtocol`


@dataclass(frozen=True)
class LogisticProtocol:
    """How a logistic regression is fitted; the defaults are ours."""

    # Values of C, the inverse of the L2 penalty of the summed loss, ascending; the best on a
    # held-out part of train is taken.
    strengths: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
    # columns: to mean 0 and variance 1 by the training images; rows: each less its mean and of
    # length 1; or none.
    scale: str = "columns"
    intercept: bool = True  # there is a bias, unpenalised
    tolerance: float = 1e-3  # of the gradient, times the number of classes, which share it
    iterations: int = 5000  # at most
    search_iterations: int = 200  # while C is chosen: weak penalties are slow, and seldom chosen
    precision: str = "float32"  # of the sums
    source: str = "ours"  # repo:path
    view: View | None = None  # of the images; None takes any


@dataclass(frozen=True)
class DenseHead:
    """One head on patch tokens, and how fast it learns."""

    norm: Norm
    lr: float

    @property
    def name(self) -> str:
        """For tables."""
        norm = "BN + " if self.norm == "batch" else ""
        return f"{norm}linear, lr {self.lr:g}"


@dataclass(frozen=True)
class DenseProtocol:
    """How linear heads on patch tokens are trained by AdamW, all on the same batches."""

    heads: tuple[DenseHead, ...]
    steps: int
    schedule: Schedule
    weight_decay: float
    source: str
    batch: int = 16  # images
    clip: float | None = None  # norm of a head's gradient
    bins: int = 256  # of depth, which is their mean
    depths: tuple[float, float] | None = None  # of the first and last bin; None: those of train
    lacks: tuple[str, ...] = ()  # what the publication does and this does not, or leaves open


_BODY: dict[str, Any] = yaml.safe_load(
    resources.files("ijepa.probes").joinpath("protocols.yaml").read_text()
)


def _read(kind: Callable[..., P], probe: str) -> dict[str, P]:
    """The protocols of a probe in `protocols.yaml`, by name."""
    protocols = {}
    for name, body in _BODY[probe].items():
        fields = dict(body)
        if "heads" in fields:
            grids, fields["heads"] = fields["heads"], []
            for grid in grids:  # all combinations of the values of fields, each a list or one
                values = [value if isinstance(value, list) else [value] for value in grid.values()]
                fields["heads"] += [dict(zip(grid, one, strict=True)) for one in product(*values)]
        if "schedule" in fields:
            shape, length = dict(fields["schedule"]), fields.get("epochs") or fields["steps"]
            schedule = SCHEDULES[shape.pop("kind")]
            for counted in shape.keys() & {"at", "warmup"}:  # epochs or steps become shares
                shape[counted] = np.divide(shape[counted], length).tolist()
            fields["schedule"] = partial(schedule, **shape)
        if isinstance(choices := fields.get("strengths"), dict):
            fields["strengths"] = (10.0 ** np.linspace(*choices["decades"])).tolist()
        protocols[name] = kind(**fields)
    return protocols


# By probe: its `home` (`module:function` in this folder); in words, what it does (`description`)
# and what is chosen on which images (`selection`).
PROBES: dict[str, dict[str, str]] = _BODY["probes"]
LINEAR_PROTOCOLS = _read(LinearProtocol, "linear")
ATTENTIVE_PROTOCOLS = _read(AttentiveProtocol, "attentive")
LOGISTIC_PROTOCOLS = _read(LogisticProtocol, "logistic")
FEW_SHOT_PROTOCOLS = _read(LogisticProtocol, "few-shot")
DENSE_PROTOCOLS = {name: _read(DenseProtocol, name) for name in ("segmentation", "depth")}
PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"ijepa": None} for name in PROBES},  # probes without settings that papers publish
    **DENSE_PROTOCOLS,
    "logistic": LOGISTIC_PROTOCOLS,
    "linear": LINEAR_PROTOCOLS,
    "attentive": ATTENTIVE_PROTOCOLS,
    "few-shot": FEW_SHOT_PROTOCOLS,
}


def deviations(config: ProbeConfig, test: View, augment: str, num_views: int) -> tuple[str, ...]:
    """How stored features differ from what the protocol of `config` trains on and evaluates.

    The features are of the `test` view, and of `num_views` views of each training image that
    `augment` made.
    """
    protocol = PROTOCOLS[config.name][config.protocol]
    if protocol is None:
        return ()
    if isinstance(protocol, DenseProtocol):
        return protocol.lacks
    lines = _view_deviations(protocol.view, test) if protocol.view else []
    if isinstance(protocol, LogisticProtocol):
        return tuple(lines)
    label = {name: label for label, name in LOW_LEVEL.items()}.get(config.protocol, config.label)
    if config.label != label:
        lines.append(f"label {config.label}, not {label}")
    if protocol.augment == augment != "none":
        lines.append(f"{num_views} stored views of each image, not a new one an epoch")
    elif protocol.augment != "none":
        seen = augment if num_views else "the evaluation view alone"
        lines.append(f"trained on {seen}, not on {protocol.augment}")
    return tuple(lines)


def _view_deviations(published: View, stored: View) -> list[str]:
    """How the stored view differs from the published one, one line each."""
    lines = []
    if stored.crop != published.crop:
        lines.append(f"images cut by --crop {stored.crop}, not {published.crop}")
    if stored.image_px[0] not in published.image_px:
        px, expected = (" or ".join(map(str, view.image_px)) for view in (stored, published))
        lines.append(f"images of {px} pixels, not of {expected}")
    if published.interpolation not in (None, stored.interpolation):
        lines.append(
            f"images resized by {stored.interpolation}, not {published.interpolation} interpolation"
        )
    kept = stored.crop_fraction or published.crop_fraction
    if stored.crop == published.crop and kept != published.crop_fraction:
        lines.append(
            f"a centre crop of {kept} of the resized short side, not of {published.crop_fraction}"
        )
    if published.features is not None:
        lines.append(f"features are not {published.features}")
    return lines
