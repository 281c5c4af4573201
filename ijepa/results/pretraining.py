"""Settings of a pretraining by their dotted names, so that runs can be told apart by them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from ijepa.config import PretrainConfig
from ijepa.lineage import run_family
from ijepa.recipes import load_recipe
from ijepa.results.record import ProbeResult

Settings = Mapping[str, Any]

# Of no effect on the weights, or a bound that a small grid moves.
ASIDE = ("seed", "watch.", "checkpoint_epochs", "stream.", "masks.min_keep")
# Sizes of the predictor are compared as shares of the encoder's: a small one is as deep or wide.
SHARES = {"predictor.depth": "depth", "predictor.dim": "dim"}


def known_settings(
    results: Sequence[ProbeResult], configs: Iterable[PretrainConfig]
) -> dict[str, Settings]:
    """Settings of pretraining by family: as results carry them, and as given runs have them.

    Args:
        results: those of today name the settings of their encoders.
        configs: of runs; a family is a digest of its settings, so they are known to be the same.
    """
    found: dict[str, Settings] = {}
    for config in configs:
        body = config.model_dump(mode="json", exclude={"seed"})
        found[run_family("I-JEPA", body)] = flat(body)
    for result in results:
        for score in result.scores:
            lineage = score.origin.lineage
            if lineage.method == "I-JEPA" and lineage.family and lineage.settings:
                found[lineage.family] = flat(lineage.settings)
    return found


@cache
def recipe_settings(name: str) -> Settings:
    """Those of a recipe of the package."""
    return flat(load_recipe(name).model_dump(mode="json"))


def flat(body: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name: `{"masks": {"kind": "block"}}` gives `{"masks.kind": "block"}`."""
    leaves: dict[str, Any] = {}
    for name, value in body.items():
        dotted = f"{prefix}{name}"
        leaves |= flat(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value}
    return leaves


def rest(settings: Settings, without: Sequence[str] = ()) -> dict[str, Any]:
    """All that must be equal for a comparison of nothing but `without`."""
    return {
        name: value
        for name, value in settings.items()
        if not name.startswith(ASIDE) and name not in without
    }


def trait(settings: Settings, name: str) -> object:
    """What a setting comes to at any scale.

    Depth and width of the predictor are shares of the encoder's. Pixels are pixels, normalised or
    not, for the paper does not say which it took.
    """
    value = settings.get(name)
    if name in SHARES and {name, "encoder.arch"} <= settings.keys():
        from ijepa.config.architectures import architecture

        return value / getattr(architecture(settings["encoder.arch"]), SHARES[name])
    if name == "targets.space":
        return str(value).removeprefix("normalised-")
    return value
