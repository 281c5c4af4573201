"""The model card beside converted weights, with metadata for the Hugging Face Hub."""

import re
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from ijepa.config import ConvertConfig
from ijepa.errors import IjepaError
from ijepa.paper import IN1K_DATA, IN22K_DATA
from ijepa.recipes import dump_yaml
from ijepa.templating import templates
from ijepa.text import one_line

if TYPE_CHECKING:
    from ijepa.encoders.formats import Networks

LIBRARIES = {"hf": "transformers", "timm": "timm", "onnx": "onnx"}  # of other formats: ijepa
TAGS = ["i-jepa", "self-supervised-learning", "vision-transformer"]
PRETRAINED_ON = {IN1K_DATA: "ILSVRC/imagenet-1k", IN22K_DATA: "timm/imagenet-22k-wds"}  # on the hub
META = "cc-by-nc-4.0"


def model_card(
    networks: "Networks", config: ConvertConfig, name: str, holds: str, load: str
) -> str:
    """Markdown that says what weights are, how to load them, and under which licence.

    Args:
        networks: of which some were written.
        config: the format, and the licence that the user named.
        name: of the file or folder that loads them.
        holds: what they are, in words.
        load: a call in Python that loads them.

    Raises:
        IjepaError: a licence other than the one under which Meta published the weights.
    """
    known, settings = networks.provenance, networks.config
    data, licence = settings.data, config.license
    if known.origin == "published" and licence not in (None, META):
        raise IjepaError(
            f"{networks.source} holds weights that Meta published under {META}; leave --license "
            f"{licence} out."
        )
    front = ModelCardData(
        library_name=LIBRARIES.get(config.to, "ijepa"),
        pipeline_tag="image-feature-extraction",
        license=META if known.origin == "published" else licence,
        tags=TAGS,
        datasets=[PRETRAINED_ON[known.data]] if known.data in PRETRAINED_ON else None,
    )
    source = "a run of ijepa" if known.origin == "run" else f"{known.origin} weights"
    numbers = {"epochs": known.epochs, "steps": known.steps, "images seen": known.images}
    facts = [
        ("architecture", f"{settings.encoder.arch}, patches of {settings.encoder.patch_px} pixels"),
        ("images", f"{data.image_px} pixels; mean {data.mean}, std {data.std}"),
        ("evaluation view", f"centre crop of {data.eval_crop_fraction:.4g} of the short side"),
        ("first read from", source),
        *((one, f"{value:,}") for one, value in numbers.items() if value is not None),
        *([("pretraining data", f"fingerprint `{known.shards}`")] if known.shards else []),
    ]
    environment = templates("encoders", html=False)
    environment.filters.update(
        # Text of others that stays what it is in Markdown: in its cell, neither link nor element.
        plain=lambda text: re.sub(r"[|<\[]", r"\\\g<0>", one_line(text)),
        literal=repr,
    )
    return environment.get_template("card.md.j2").render(
        front=front.to_yaml(),
        name=name,
        holds=holds,
        to=config.to,
        load=load,
        channels=data.num_channels,
        size=data.image_size,
        facts=facts,
        origin=known.origin,
        licence=licence,
        configuration=dump_yaml(settings) if known.settings else "",
    )
