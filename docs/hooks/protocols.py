"""Tables of protocols, from the data that the probes run by."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ijepa.config import FINETUNE_PROTOCOLS, FinetuneConfig
from ijepa.probes.knn import HELD_OUT_AT_MOST, NEIGHBOURS, TEMPERATURE
from ijepa.probes.protocols import (
    ATTENTIVE_PROTOCOLS,
    DENSE_PROTOCOLS,
    FEW_SHOT_PROTOCOLS,
    LINEAR_PROTOCOLS,
    LOGISTIC_PROTOCOLS,
    LinearProtocol,
    LogisticProtocol,
    View,
    cosine,
    steps_down,
)

NORMS = {"none": "none", "batch": "batch norm", "plain-batch": "batch norm without weights"}
OPTIMIZERS = {"sgd": "SGD, Nesterov", "sgd-plain": "SGD", "lars": "LARS"}


def linear() -> str:
    """How heads are trained, and which there are to choose from."""
    return _table(
        ("protocol", "optimizer, batch, length", "learning rate over time", "source"),
        ((name, _training(one), _schedule(one), one.source)
         for name, one in LINEAR_PROTOCOLS.items()),
    ) + "\n\n" + _table(
        ("protocol", "features", "before the head", "learning rates at 256", "decay", "images"),
        ((name, *_heads(one), _images(one)) for name, one in LINEAR_PROTOCOLS.items()),
    )  # fmt: skip


def logistic() -> str:
    """Logistic regressions."""
    return _regressions(LOGISTIC_PROTOCOLS)


def few_shot() -> str:
    """Logistic regressions on few images."""
    return _regressions(FEW_SHOT_PROTOCOLS)


def attentive() -> str:
    """How attentive heads are built and trained."""
    return _table(
        ("protocol", "blocks, attention heads", "AdamW: batch, epochs", "highest learning rates",
         "decay", "images", "source"),
        (
            (
                name,
                f"{one.depth}, {one.num_heads}",
                f"{one.batch:,}, {one.epochs}, cosine to 0",
                _each(f"{head.lr:g}" for head in one.heads),
                _each(f"{head.weight_decay:g}" for head in one.heads),
                f"train: {one.augment}; test: {_view(one.view)}",
                one.source,
            )
            for name, one in ATTENTIVE_PROTOCOLS.items()
        ),
    )  # fmt: skip


def knn() -> str:
    """The vote of neighbours."""
    sizes = ", ".join(str(k) for k in NEIGHBOURS)
    return (
        f"k of {sizes}, chosen on at most {HELD_OUT_AT_MOST:,} training images or one a class; "
        f"votes weigh exp(cosine / {TEMPERATURE:g})."
    )


def finetuning() -> str:
    """Settings of each protocol of fine-tuning; the encoder and the seed are no part of them."""
    settings = {
        name: dict(FinetuneConfig(encoder="any", protocol=name)) for name in FINETUNE_PROTOCOLS
    }
    fields = [
        name for name in FinetuneConfig.model_fields
        if name not in ("protocol", "encoder", "which", "label", "split", "test_split", "seed")
    ]  # fmt: skip
    return _table(
        ("setting", *settings),
        ((name, *(_value(one[name]) for one in settings.values())) for name in fields),
    )


def dense() -> str:
    """Heads on patch tokens, and what they lack of what is published."""
    return _table(
        ("probe", "protocol", "heads", "steps", "decay", "source", "differs"),
        (
            (probe, name, "; ".join(head.name for head in one.heads), f"{one.steps:,}",
             f"{one.weight_decay:g}", one.source, "; ".join(one.lacks))
            for probe, protocols in DENSE_PROTOCOLS.items()
            for name, one in protocols.items()
        ),
    )  # fmt: skip


BLOCKS: dict[str, Callable[[], str]] = {
    "dense": dense,
    "linear": linear,
    "attentive": attentive,
    "logistic": logistic,
    "few-shot": few_shot,
    "knn": knn,
    "finetuning": finetuning,
}


def _training(one: LinearProtocol) -> str:
    length = f"{one.epochs} epochs" if one.epochs else f"{one.steps:,} steps"
    return f"{OPTIMIZERS[one.optimizer]}, {one.batch:,}, {length}"


def _schedule(one: LinearProtocol) -> str:
    """In words; a schedule of another kind must be given some."""
    changed = ", epoch by epoch" if one.per_epoch else ", step by step"
    made = one.schedule
    assert isinstance(made, partial)
    if made.func is steps_down:
        epochs = ", ".join(f"{share * one.epochs:g}" for share in made.keywords["at"])
        return f"a tenth from each of epochs {epochs}"
    assert made.func is cosine
    warmup = made.keywords.get("warmup", 0.0)
    rise = f"{warmup * one.epochs:g} epochs up, then " if warmup else ""
    return f"{rise}cosine to {made.keywords.get('end', 0.0):g}{changed}"


def _heads(one: LinearProtocol) -> tuple[str, str, str, str]:
    """The values of each of the choices that heads are made of."""
    layers = {"last": "last layer", "concat": "last four layers"}
    return (
        _each(layers[head.features] for head in one.heads),
        _each(NORMS[head.norm] for head in one.heads),
        _each(f"{head.lr:g}" for head in one.heads),
        _each(f"{head.weight_decay:g}" for head in one.heads),
    )


def _images(one: LinearProtocol) -> str:
    return f"train `--augment {one.augment}`, test {_view(one.view)}"


def _view(view: View | None) -> str:
    if view is None:
        return "any"
    sides = " or ".join(str(px) for px in view.image_px)
    kept = f", {view.crop_fraction:g} of the short side" if view.crop_fraction else ""
    how = view.interpolation or "bilinear or bicubic"
    features = f"; {view.features}" if view.features else ""
    return f"`--crop {view.crop}`{kept}, {how}, {sides} pixels{features}"


def _regressions(protocols: dict[str, LogisticProtocol]) -> str:
    return _table(
        ("protocol", "C", "features", "bias", "tolerance, iterations", "images", "source"),
        (
            (
                name,
                _strengths(one.strengths),
                f"scaled by {one.scale}" if one.scale != "none" else "as they are",
                "yes" if one.intercept else "no",
                f"{one.tolerance:g}, {one.iterations:,} in {one.precision}",
                _view(one.view),
                one.source,
            )
            for name, one in protocols.items()
        ),
    )


def _strengths(strengths: Sequence[float]) -> str:
    if len(strengths) <= 6:
        return ", ".join(f"{value:g}" for value in strengths)
    return f"{len(strengths)} values, {strengths[0]:g} to {strengths[-1]:g}"


def _each(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _value(value: object) -> str:
    if value in (None, ""):
        return "-"
    return " to ".join(f"{one:g}" for one in value) if isinstance(value, tuple) else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += [f"| `{first}` | " + " | ".join(rest) + " |" for first, *rest in rows]
    return "\n".join(lines)
