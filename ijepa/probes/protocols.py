"""Published protocols of probes, as data: linear heads by SGD or LARS, logistic regression.

Where the paper (A.2) and the evaluation code that it used (facebookresearch/vissl at 04788de9)
differ, both are here under names of their own. Learning rates are for batches of 256 and grow
with the batch. Heads of I-JEPA see averages of patch tokens where MAE and DINOv2 see a class token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal

import numpy as np

RATE_BATCH = 256  # to which learning rates refer
VISSL_PX = (224, 448)
Schedule = Callable[[float], float]
RESIZE_256 = 224 / 256  # torchvision's Resize(256), CenterCrop(224)


@dataclass(frozen=True)
class View:
    """What a protocol scores; None where it takes any, or where its files differ.

    Attributes:
        crop: `center` or `squash`, as `ijepa extract --crop` names it.
        crop_fraction: of the resized short side that a centre crop keeps.
        interpolation: by which images are resized: `bilinear` or `bicubic`.
        image_px: sides of the square that are published.
        features: of an image, where they are none that `ijepa extract` stores.
    """

    crop: Literal["center", "squash"] = "center"
    crop_fraction: float | None = RESIZE_256
    interpolation: Literal["bilinear", "bicubic"] | None = None
    image_px: tuple[int, ...] = (224,)
    features: str | None = None


@dataclass(frozen=True)
class Head:
    """One way to put a linear classifier on features.

    Attributes:
        features: the `last` layer, or the last four side by side (`concat`).
        norm: `batch` norm with weights of its own before the linear layer, `plain-batch` norm
            without, or `none`.
        lr: at a batch of 256.
        weight_decay: of the linear layer, its bias included (VISSL: `regularize_bias: True`).
    """

    features: Literal["last", "concat"]
    norm: Literal["none", "batch", "plain-batch"]
    lr: float
    weight_decay: float

    @property
    def name(self) -> str:
        """For tables."""
        norm = {"none": "", "batch": "BN + ", "plain-batch": "BN without weights + "}[self.norm]
        return f"{self.features}, {norm}linear, lr {self.lr:g}, decay {self.weight_decay:g}"


@dataclass(frozen=True)
class LinearProtocol:
    """How heads are trained; all of them at once, on the same batches.

    Attributes:
        heads: the best of which is reported.
        epochs: over the training images; 0 if `steps` counts instead.
        steps: batches in all, whatever the number of images; 0 if `epochs` counts.
        schedule: factor on the learning rate by the share of training that is done, in [0, 1).
        per_epoch: does the factor change between epochs only?
        batch: images.
        optimizer: `sgd` with Nesterov momentum, `sgd-plain` momentum, or `lars`, which adapts
            matrices only.
        init: `torch`'s own; or normal weights of a standard deviation of 0.01, and no bias.
        norm_eps: of batch norm.
        augment: of the training images, as `ijepa extract --augment` names it.
        view: of the test images; None takes any.
        bf16: are matrices multiplied in bfloat16? No publication says; the run does.
        source: paper section, or repo:path.
    """

    heads: tuple[Head, ...]
    schedule: Schedule
    source: str
    epochs: int = 0
    steps: int = 0
    per_epoch: bool = True
    batch: int = 256
    optimizer: Literal["sgd", "sgd-plain", "lars"] = "sgd"
    init: Literal["torch", "normal"] = "torch"
    norm_eps: float = 1e-5
    augment: Literal["none", "flip", "rrc-flip"] = "rrc-flip"
    view: View | None = None
    bf16: bool = False


def steps_down(done: float, *, at: tuple[float, ...]) -> float:
    """A tenth, and a tenth of that, from these shares of the training on."""
    return 0.1 ** sum(done >= share - 1e-9 for share in at)


def cosine(done: float, *, end: float = 0.0, warmup: float = 0.0) -> float:
    """From 1 to `end` along half a cosine, after a linear rise over the share `warmup`."""
    if done < warmup:
        return done / warmup
    rest = (done - warmup) / (1 - warmup)
    return end + (1 - end) * (1 + math.cos(math.pi * rest)) / 2


def _vissl(
    epochs: int, *falls: int, path: str, interpolation: Literal["bicubic"] | None = "bicubic"
) -> LinearProtocol:
    """Its files resize bicubically for every network, or (None) for some of them."""
    return LinearProtocol(
        heads=_heads(("batch", "none"), (0.01,), (5e-4,)),
        epochs=epochs,
        schedule=partial(steps_down, at=tuple(fall / epochs for fall in falls)),
        view=View(interpolation=interpolation, image_px=VISSL_PX),
        source=f"vissl:configs/config/benchmark/linear_image_classification/{path}",
    )


def _vissl_clevr(epochs: int, task: str) -> LinearProtocol:
    return LinearProtocol(
        heads=_heads(("batch", "none"), (0.01,), (5e-4,)),
        epochs=epochs,
        schedule=partial(cosine, end=0.01),
        augment="flip",
        view=View("squash", None, "bilinear"),
        source=f"vissl:configs/config/benchmark/linear_image_classification/{task}",
    )


def _lars(rates: tuple[float, ...], source: str) -> LinearProtocol:
    return LinearProtocol(
        heads=_heads(("batch", "none"), rates, (5e-4, 0.0)),
        epochs=50,
        schedule=partial(steps_down, at=(0.3, 0.6, 0.9)),
        batch=16384,
        optimizer="lars",
        view=View(interpolation="bicubic", image_px=VISSL_PX),
        source=source,
    )


def _mae(epochs: int, sizes: str) -> LinearProtocol:
    return LinearProtocol(
        heads=_heads(("plain-batch",), (0.1,), (0.0,), features=("last",)),
        epochs=epochs,
        schedule=partial(cosine, warmup=10 / epochs),
        per_epoch=False,
        batch=16384,
        optimizer="lars",
        init="normal",
        norm_eps=1e-6,
        view=View(interpolation="bicubic"),
        source=f"mae:FINETUNE.md, {sizes}",
    )


def _heads(
    norms: tuple[Literal["none", "batch", "plain-batch"], ...],
    rates: tuple[float, ...],
    decays: tuple[float, ...],
    features: tuple[Literal["last", "concat"], ...] = ("last", "concat"),
) -> tuple[Head, ...]:
    return tuple(Head(*choices) for choices in product(features, norms, rates, decays))


DINOV2_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)

LINEAR_PROTOCOLS = {
    "ijepa": LinearProtocol(
        heads=_heads(("none", "batch"), (0.1, 0.01, 0.001), (5e-4,)),
        epochs=28,
        schedule=partial(steps_down, at=(8 / 28, 16 / 28, 24 / 28)),
        init="normal",
        augment="none",
        source="ours: the schedule of vissl-cifar100, more learning rates, evaluation views",
    ),
    "vissl-cifar100": _vissl(28, 8, 16, 24, path="cifar100"),
    "vissl-places205": _vissl(14, 4, 8, 12, path="places205", interpolation=None),
    "vissl-inat18": _vissl(84, 24, 48, 72, path="inaturalist18", interpolation=None),
    "vissl-in1k": _vissl(28, 8, 16, 24, path="imagenet1k"),
    "vissl-clevr-count": _vissl_clevr(50, "clevr_count"),
    "vissl-clevr-dist": _vissl_clevr(100, "clevr_dist"),
    "vissl-in1k-lars": _lars(
        (0.1, 0.01),
        "vissl:configs/config/benchmark/linear_image_classification/imagenet1k/models/"
        "vit_h16_no_cls.yaml",
    ),
    "paper-in1k-lars": _lars((0.01, 0.05, 0.001), "paper, A.2"),
    "mae-lars": _mae(90, "ViT-B"),
    "mae-lars-50": _mae(50, "ViT-L and ViT-H"),
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
class LogisticProtocol:
    """How a logistic regression is fitted.

    Attributes:
        strengths: values of C, the inverse of the L2 penalty of the summed loss, ascending; the
            best on a held-out part of train is taken.
        scale: `columns` to mean 0 and variance 1 by the training images; `rows`, each less its
            mean and of length 1; or `none`.
        intercept: is there a bias, unpenalised?
        tolerance: of the gradient, times the number of classes: it shrinks as classes share it.
        iterations: at most.
        search_iterations: at most while C is chosen; weak penalties would take most of the time,
            and are seldom chosen.
        precision: of the sums.
        source: repo:path.
        view: of the images; None takes any.
    """

    strengths: tuple[float, ...]
    scale: str
    intercept: bool
    tolerance: float
    iterations: int
    search_iterations: int
    precision: str
    source: str
    view: View | None = None


# Penalty lambda / (2 n) on the mean loss, as cyanure has it: C = 1 / lambda, whatever n is. Its 300
# epochs reach the optimum; L-BFGS needs over 1,000 iterations to.
MSN = LogisticProtocol(
    strengths=(4000.0,),
    scale="rows",
    intercept=False,
    tolerance=1e-5,
    iterations=5000,
    search_iterations=5000,
    precision="float32",
    source="msn:logistic_eval.py, lambda 2.5e-4, its default; none is given for 1% of ImageNet",
    view=View(interpolation="bilinear", features="the class token before the final norm"),
)

LOGISTIC_PROTOCOLS = {
    "ijepa": LogisticProtocol(
        strengths=(0.0001, 0.001, 0.01, 0.1, 1.0, 10.0),
        scale="columns",
        intercept=True,
        tolerance=1e-3,
        iterations=5000,
        search_iterations=200,
        precision="float32",
        source="ours",
    ),
    "msn": MSN,
    "msn-5-shot": replace(
        MSN,
        strengths=(400.0,),
        source="msn:README.md, lambda 2.5e-3, for five images a class",
    ),
    "dinov2": LogisticProtocol(
        strengths=tuple((10.0 ** np.linspace(-6, 5, 45)).tolist()),
        scale="none",
        intercept=True,
        tolerance=1e-12,
        iterations=1000,
        search_iterations=1000,
        precision="float64",
        source="dinov2:dinov2/eval/log_regression.py",
        view=View(crop_fraction=1.0, interpolation="bicubic"),
    ),
}

# C is fixed, because a handful of images leaves nothing to choose on.
FEW_SHOT_PROTOCOLS = {
    "ijepa": replace(LOGISTIC_PROTOCOLS["msn-5-shot"], view=None),
    "msn": LOGISTIC_PROTOCOLS["msn"],
}
