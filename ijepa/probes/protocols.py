"""Published protocols of probes, and what each probe does; the data itself is `protocols.yaml`."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from itertools import product
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import yaml
from pydantic.dataclasses import dataclass

from ijepa.config import ProbeConfig

RATE_BATCH = 256  # to which learning rates of linear heads refer; they grow with the batch
LOW_LEVEL = {"count": "vissl-clevr-count", "dist": "vissl-clevr-dist"}  # by label; paper, table 4

Schedule = Callable[[float], float]  # factor by the share of the training that is done, in [0, 1)
Norm = Literal["none", "batch", "plain-batch"]
P = TypeVar("P")


def steps_down(done: float, *, at: Sequence[float]) -> float:
    """A tenth, and a tenth of that, from these shares of the training on."""
    return 0.1 ** sum(done >= share - 1e-9 for share in at)


def cosine(done: float, *, end: float = 0.0, warmup: float = 0.0) -> float:
    """From 1 to `end` along half a cosine, after a linear rise over the share `warmup`."""
    if done < warmup:
        return done / warmup
    rest = (done - warmup) / (1 - warmup)
    return end + (1 - end) * (1 + math.cos(math.pi * rest)) / 2


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


class Probe(NamedTuple):
    """What a probe does, in words, and where: `module:function` in this folder."""

    home: str
    description: str
    selection: str  # what is chosen, and on which images


@dataclass(frozen=True)
class View:
    """What a protocol scores, or what a feature file holds of an image."""

    crop: str = "center"  # or `squash`, as `ijepa extract --crop` names it
    crop_fraction: float | None = 224 / 256  # of the resized short side that a centre crop keeps
    interpolation: str | None = None  # by which images are resized; None for any
    image_px: tuple[int | tuple[int, int], ...] = (224,)  # sides that are published, or the file's
    features: str | None = None  # of an image, where they are none that `ijepa extract` stores


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
    """How heads are trained; all of them at once, on the same batches."""

    heads: tuple[Head, ...]  # the best of which is reported
    schedule: Schedule  # factor on learning rates
    source: str  # paper section, or repo:path
    epochs: int = 0  # over the training images; 0 if `steps` counts instead
    steps: int = 0  # batches in all, whatever the number of images; 0 if `epochs` counts
    per_epoch: bool = True  # does the factor change between epochs only?
    batch: int = 256  # images
    # SGD with Nesterov momentum or (plain) without; LARS, which adapts matrices only.
    optimizer: Literal["sgd", "sgd-plain", "lars"] = "sgd"
    # PyTorch's own; or normal weights of a standard deviation of 0.01, and no bias.
    init: Literal["torch", "normal"] = "torch"
    norm_eps: float = 1e-5  # of batch norm
    augment: Literal["none", "flip", "rrc-flip"] = "rrc-flip"  # of the training images
    view: View | None = None  # of the test images; None takes any
    bf16: bool = False  # are matrices multiplied in it? No publication says; the run does


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
    projects: bool = True  # has the cross-attention an output projection?
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
    intercept: bool = True  # is there a bias, unpenalised?
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
        return f"{'BN + ' * (self.norm == 'batch')}linear, lr {self.lr:g}"


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
    lacks: tuple[str, ...] = ()  # what the publication has and this does not, or does not tell


_BODY: dict[str, Any] = yaml.safe_load(
    resources.files("ijepa.probes").joinpath("protocols.yaml").read_text()
)


def _read(kind: Callable[..., P], probe: str) -> dict[str, P]:
    """The protocols of a probe, as arguments of their class."""
    found = {}
    for name, body in _BODY[probe].items():
        fields = dict(body)
        if "heads" in fields:
            fields["heads"] = [head for choices in fields["heads"] for head in _grid(choices)]
        if "schedule" in fields:
            shape, length = dict(fields["schedule"]), fields.get("epochs") or fields["steps"]
            schedule = SCHEDULES[shape.pop("kind")]
            for counted in shape.keys() & {"at", "warmup"}:  # epochs or steps become shares
                shape[counted] = np.divide(shape[counted], length).tolist()
            fields["schedule"] = partial(schedule, **shape)
        if isinstance(choices := fields.get("strengths"), dict):
            fields["strengths"] = (10.0 ** np.linspace(*choices["decades"])).tolist()
        found[name] = kind(**fields)
    return found


def _grid(choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All combinations of the values of fields, each a list or one value."""
    values = [one if isinstance(one, list) else [one] for one in choices.values()]
    return [dict(zip(choices, combined, strict=True)) for combined in product(*values)]


PROBES = {name: Probe(**fields) for name, fields in _BODY["probes"].items()}
LINEAR_PROTOCOLS = _read(LinearProtocol, "linear")
ATTENTIVE_PROTOCOLS = _read(AttentiveProtocol, "attentive")
LOGISTIC_PROTOCOLS = _read(LogisticProtocol, "logistic")
FEW_SHOT_PROTOCOLS = _read(LogisticProtocol, "few-shot")
DENSE_PROTOCOLS = {name: _read(DenseProtocol, name) for name in ("segmentation", "depth")}
PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    **DENSE_PROTOCOLS,
    "logistic": LOGISTIC_PROTOCOLS,
    "linear": LINEAR_PROTOCOLS,
    "attentive": ATTENTIVE_PROTOCOLS,
    "knn": {"ijepa": None},
    "retrieval": {"ijepa": None},
    "few-shot": FEW_SHOT_PROTOCOLS,
}


def deviations(config: ProbeConfig, test: View, augment: str, num_views: int) -> tuple[str, ...]:
    """How stored features differ from what the protocol of `config` trains on and evaluates.

    These are the `test` view, and `num_views` views of each training image made by `augment`.
    """
    protocol, found = PROTOCOLS[config.name][config.protocol], []
    if isinstance(protocol, DenseProtocol):
        return protocol.lacks
    if protocol and protocol.view:
        found += _view_deviations(protocol.view, test)
    if config.name not in ("linear", "attentive"):
        return tuple(found)
    label = {name: label for label, name in LOW_LEVEL.items()}.get(config.protocol, config.label)
    if config.label != label:
        found.append(f"label {config.label}, not {label}")
    if protocol.augment == augment != "none":
        found.append(f"{num_views} stored views of each image, not a new one an epoch")
    elif protocol.augment != "none":
        seen = augment if num_views else "the evaluation view alone"
        found.append(f"trained on {seen}, not on {protocol.augment}")
    return tuple(found)


def _view_deviations(wanted: View, found: View) -> list[str]:
    sides, stored = (" or ".join(map(str, view.image_px)) for view in (wanted, found))
    kept = (found.crop_fraction or wanted.crop_fraction, wanted.crop_fraction)
    said = {
        f"images cut by --crop {found.crop}, not {wanted.crop}": found.crop != wanted.crop,
        f"images of {stored} pixels, not of {sides}": found.image_px[0] not in wanted.image_px,
        f"images resized by {found.interpolation}, not {wanted.interpolation} interpolation": (
            wanted.interpolation not in (None, found.interpolation)
        ),
        f"a centre crop of {kept[0]} of the resized short side, not of {kept[1]}": (
            found.crop == wanted.crop and kept[0] != kept[1]
        ),
        f"features are not {wanted.features}": wanted.features is not None,
    }
    return [line for line, applies in said.items() if applies]
