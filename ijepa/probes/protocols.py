"""Published protocols of probes, as data: linear and attentive heads, logistic regression.

Where the paper (A.2) and the evaluation code that it used (facebookresearch/vissl at 04788de9)
differ, both are here under names of their own. Learning rates are for batches of 256 and grow
with the batch. Heads of I-JEPA see averages of patch tokens where MAE and DINOv2 see a class token.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np

from ijepa.config import ProbeConfig

RATE_BATCH = 256  # to which learning rates refer
RESIZE_256 = 224 / 256  # torchvision's Resize(256), CenterCrop(224)
LOW_LEVEL = {"count": "vissl-clevr-count", "dist": "vissl-clevr-dist"}  # by label; paper, table 4

Schedule = Callable[[float], float]
Norm = Literal["none", "batch", "plain-batch"]
Layers = Literal["last", "concat"]


@dataclass(frozen=True)
class View:
    """What a protocol scores, or what a feature file holds of an image."""

    crop: str = "center"  # or `squash`, as `ijepa extract --crop` names it
    crop_fraction: float | None = RESIZE_256  # of the resized short side that a centre crop keeps
    interpolation: str | None = None  # by which images are resized; None for any
    image_px: tuple[int | tuple[int, int], ...] = (224,)  # sides that are published, or the file's
    features: str | None = None  # of an image, where they are none that `ijepa extract` stores


@dataclass(frozen=True)
class Head:
    """One way to put a linear classifier on features."""

    features: Layers  # the last, or the last four side by side
    norm: Norm  # before the linear layer; `plain-batch` has no weights of its own
    lr: float  # at a batch of 256
    weight_decay: float  # of the linear layer, its bias included (VISSL: `regularize_bias: True`)

    @property
    def name(self) -> str:
        """For tables."""
        norm = {"none": "", "batch": "BN + ", "plain-batch": "BN without weights + "}[self.norm]
        return f"{self.features}, {norm}linear, lr {self.lr:g}, decay {self.weight_decay:g}"


def _heads(
    norms: tuple[Norm, ...],
    rates: tuple[float, ...],
    decays: tuple[float, ...],
    features: tuple[Layers, ...] = ("last", "concat"),
) -> tuple[Head, ...]:
    return tuple(Head(*choices) for choices in product(features, norms, rates, decays))


@dataclass(frozen=True)
class LinearProtocol:
    """How heads are trained; all of them at once, on the same batches."""

    heads: tuple[Head, ...]  # the best of which is reported
    schedule: Schedule  # factor on learning rates by the share of training that is done, in [0, 1)
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


def steps_down(done: float, *, at: tuple[float, ...]) -> float:
    """A tenth, and a tenth of that, from these shares of the training on."""
    return 0.1 ** sum(done >= share - 1e-9 for share in at)


def cosine(done: float, *, end: float = 0.0, warmup: float = 0.0) -> float:
    """From 1 to `end` along half a cosine, after a linear rise over the share `warmup`."""
    if done < warmup:
        return done / warmup
    rest = (done - warmup) / (1 - warmup)
    return end + (1 - end) * (1 + math.cos(math.pi * rest)) / 2


VISSL = "vissl:configs/config/benchmark/linear_image_classification"
BICUBIC = View(interpolation="bicubic", image_px=(224, 448))
EITHER = replace(BICUBIC, interpolation=None)  # files that differ by network
CIFAR100 = LinearProtocol(
    heads=_heads(("batch", "none"), (0.01,), (5e-4,)),
    epochs=28,
    schedule=partial(steps_down, at=(8 / 28, 16 / 28, 24 / 28)),
    view=BICUBIC,
    source=f"{VISSL}/cifar100",
)
CLEVR_COUNT = replace(
    CIFAR100,
    epochs=50,
    schedule=partial(cosine, end=0.01),
    augment="flip",
    view=View("squash", None, "bilinear"),
    source=f"{VISSL}/clevr_count",
)
IN1K_LARS = LinearProtocol(
    heads=_heads(("batch", "none"), (0.1, 0.01), (5e-4, 0.0)),
    epochs=50,
    schedule=partial(steps_down, at=(0.3, 0.6, 0.9)),
    batch=16384,
    optimizer="lars",
    view=BICUBIC,
    source=f"{VISSL}/imagenet1k/models/vit_h16_no_cls.yaml",
)
MAE = LinearProtocol(
    heads=_heads(("plain-batch",), (0.1,), (0.0,), features=("last",)),
    epochs=90,
    schedule=partial(cosine, warmup=10 / 90),
    per_epoch=False,
    batch=16384,
    optimizer="lars",
    init="normal",
    norm_eps=1e-6,
    view=View(interpolation="bicubic"),
    source="mae:FINETUNE.md, ViT-B",
)
DINOV2_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)

LINEAR_PROTOCOLS = {
    "ijepa": replace(
        CIFAR100,
        heads=_heads(("none", "batch"), (0.1, 0.01, 0.001), (5e-4,)),
        init="normal",
        augment="none",
        view=None,
        source="ours: the schedule of vissl-cifar100, more learning rates, evaluation views",
    ),
    "vissl-cifar100": CIFAR100,
    "vissl-places205": replace(
        CIFAR100,
        epochs=14,
        schedule=partial(steps_down, at=(4 / 14, 8 / 14, 12 / 14)),
        view=EITHER,
        source=f"{VISSL}/places205",
    ),
    "vissl-inat18": replace(
        CIFAR100,
        epochs=84,
        schedule=partial(steps_down, at=(24 / 84, 48 / 84, 72 / 84)),
        view=EITHER,
        source=f"{VISSL}/inaturalist18",
    ),
    "vissl-in1k": replace(CIFAR100, source=f"{VISSL}/imagenet1k"),
    "vissl-clevr-count": CLEVR_COUNT,
    "vissl-clevr-dist": replace(CLEVR_COUNT, epochs=100, source=f"{VISSL}/clevr_dist"),
    "vissl-in1k-lars": IN1K_LARS,
    "paper-in1k-lars": replace(
        IN1K_LARS,
        heads=_heads(("batch", "none"), (0.01, 0.05, 0.001), (5e-4, 0.0)),
        source="paper, A.2",
    ),
    "mae-lars": MAE,
    "mae-lars-50": replace(
        MAE,
        epochs=50,
        schedule=partial(cosine, warmup=10 / 50),
        source="mae:FINETUNE.md, ViT-L and ViT-H",
    ),
    "dinov2-linear": LinearProtocol(
        heads=_heads(("none",), DINOV2_RATES, (0.0,)),
        steps=12500,
        schedule=cosine,
        per_epoch=False,
        batch=1024,
        optimizer="sgd-plain",
        init="normal",
        view=View(interpolation="bicubic"),
        source="dinov2:dinov2/eval/linear.py (8 GPUs of 128)",
    ),
}


@dataclass(frozen=True)
class AttentiveSettings:
    """How one attentive head is trained by AdamW."""

    lr: float  # highest, whatever the batch
    weight_decay: float  # at the start; it ends at `final_decay` along half a cosine
    final_decay: float
    start_lr: float | None = None  # of a linear warmup; without one, training starts at `lr`
    warmup: float = 0.0  # as a share of the training

    @property
    def name(self) -> str:
        """For tables."""
        return f"attentive, lr {self.lr:g}, decay {self.weight_decay:g}"

    def at(self, done: float) -> tuple[float, float]:
        """Learning rate and weight decay when a share of the training is done, in [0, 1)."""
        decay = self.final_decay + (self.weight_decay - self.final_decay) * cosine(done)
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


VJEPA_AUGMENT = "AutoAugment and random erasing"
VJEPA2_RATES, VJEPA2_DECAYS = (5e-4, 1e-3, 1.5e-3, 2e-3), (8e-3, 4e-3, 2e-3, 1e-3, 5e-4)
ATTENTIVE_PROTOCOLS = {
    "ijepa": AttentiveProtocol(
        heads=tuple(
            AttentiveSettings(lr, decay, decay, 0.0, 0.1)
            for lr, decay in product((3e-4, 1e-3, 3e-3), (1e-3, 1e-1))
        ),
        num_heads=12,
        batch=128,
        source="ours: V-JEPA's head, smaller batches, a sweep, evaluation views",
    ),
    "vjepa": AttentiveProtocol(
        heads=(AttentiveSettings(1e-3, 1e-3, 1e-6),),
        augment=VJEPA_AUGMENT,
        view=View(interpolation="bilinear", image_px=(224, 384)),
        source="jepa:configs/evals/vitl16_in1k.yaml (64 GPUs of 16)",
    ),
    "vjepa2": AttentiveProtocol(
        heads=(
            AttentiveSettings(1e-3, 1e-3, 0.0),
            *(AttentiveSettings(lr, decay, decay, 2e-4, 5 / 20)
              for lr, decay in product(VJEPA2_RATES, VJEPA2_DECAYS)),
        ),
        depth=4,
        projects=False,
        decays_all=True,
        clip=None,
        augment=VJEPA_AUGMENT,
        view=View(interpolation="bilinear", image_px=(256, 384)),
        source="vjepa2:configs/eval/vitl/in1k.yaml (64 GPUs of 16)",
    ),
}  # fmt: skip


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


# Penalty lambda / (2 n) on the mean loss, as cyanure has it: C = 1 / lambda, whatever n is. Its 300
# epochs reach the optimum; L-BFGS needs over 1,000 iterations to.
MSN = LogisticProtocol(
    strengths=(4000.0,),
    scale="rows",
    intercept=False,
    tolerance=1e-5,
    source="msn:logistic_eval.py, lambda 2.5e-4, its default; none is given for 1% of ImageNet",
    view=View(interpolation="bilinear", features="the class token before the final norm"),
)
MSN_5_SHOT = replace(
    MSN, strengths=(400.0,), source="msn:README.md, lambda 2.5e-3, for five images a class"
)

LOGISTIC_PROTOCOLS = {
    "ijepa": LogisticProtocol(),
    "msn": MSN,
    "msn-5-shot": MSN_5_SHOT,
    "dinov2": LogisticProtocol(
        strengths=tuple((10.0 ** np.linspace(-6, 5, 45)).tolist()),
        scale="none",
        tolerance=1e-12,
        iterations=1000,
        search_iterations=1000,
        precision="float64",
        source="dinov2:dinov2/eval/log_regression.py",
        view=View(crop_fraction=1.0, interpolation="bicubic"),
    ),
}

# C is fixed, because a handful of images leaves nothing to choose on.
FEW_SHOT_PROTOCOLS = {"ijepa": replace(MSN_5_SHOT, view=None), "msn": MSN}


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
    lacks: tuple[str, ...] = ()  # what the publication has and this does not


def linearly(done: float, *, warmup: float) -> float:
    """A linear rise over the share `warmup`, times a linear fall to 0."""
    return min(1.0, (done + 1e-9) / warmup) * (1 - done)


NORMS: tuple[Norm, ...] = ("batch", "none")
OURS = DenseProtocol(
    heads=tuple(DenseHead(norm, lr) for norm in NORMS for lr in (1e-3, 1e-2)),
    steps=1000,
    schedule=partial(cosine, warmup=0.05),
    weight_decay=1e-3,
    source="ours: a sweep and a short schedule, evaluation views",
)
NOT_WHOLE = "scored on the evaluation view, not on the whole image at its own size"
NO_AUGMENTATION = "trained on the evaluation view alone, without random scale, crop and flip"
DENSE_PROTOCOLS = {
    "segmentation": {
        "ijepa": OURS,
        "dinov2": DenseProtocol(
            heads=(DenseHead("batch", 1e-3),),
            steps=40_000,
            schedule=partial(linearly, warmup=1500 / 40_000),
            weight_decay=1e-4,
            source="dinov2: linear head on ADE20K (8 GPUs of 2)",
            lacks=(NO_AUGMENTATION, NOT_WHOLE),
        ),
        "dinov3": DenseProtocol(
            heads=(DenseHead("batch", 1e-3),),
            steps=40_000,
            schedule=partial(cosine, warmup=1500 / 40_000),
            weight_decay=1e-2,
            clip=35.0,
            source="dinov3:dinov3/eval/segmentation/config.py (8 GPUs of 2)",
            lacks=(
                NO_AUGMENTATION, NOT_WHOLE, "no dropout of 0.1",
                "a cosine after 1,500 steps of warmup, not its one-cycle schedule",
            ),
        ),
    },
    "depth": {
        "ijepa": replace(OURS, bins=64),  # four times as fast
        "dinov2": DenseProtocol(
            heads=(DenseHead("none", 1e-4),),
            steps=38_400,
            schedule=partial(cosine, warmup=12_800 / 38_400),
            weight_decay=0.01,
            clip=35.0,
            depths=(1e-3, 10.0),
            source="dinov2:dinov2/eval/depth (linear head, 256 bins; 8 GPUs of 2)",
            lacks=(
                NO_AUGMENTATION, NOT_WHOLE, "no class token beside each patch token",
                "no gradient loss beside the scale-invariant one",
            ),
        ),
    },
}  # fmt: skip

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
