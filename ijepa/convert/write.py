"""Converted weights, and the model card beside them with metadata for the Hugging Face Hub."""

import re
from pathlib import Path

from huggingface_hub import ModelCardData

from ijepa.config import ConvertConfig
from ijepa.convert import CARD, ONNX, load_call
from ijepa.encoders import own
from ijepa.encoders import write as writers
from ijepa.encoders.base import Encoder
from ijepa.encoders.formats import ENCODERS, Networks, read_networks
from ijepa.encoders.spec import KINDS, PART_NAMES, EncoderSpec
from ijepa.errors import IjepaError
from ijepa.files import write_bytes
from ijepa.paper import IN1K_DATA, IN22K_DATA
from ijepa.recipes import dump_yaml
from ijepa.stage import Work
from ijepa.templating import templates
from ijepa.text import one_line
from ijepa.version import VERSION

LIBRARIES = {"hf": "transformers", "timm": "timm", "onnx": "onnx"}  # of other formats: ijepa
TAGS = ["i-jepa", "self-supervised-learning", "vision-transformer"]
PRETRAINED_ON = {IN1K_DATA: "ILSVRC/imagenet-1k", IN22K_DATA: "timm/imagenet-22k-wds"}  # on the hub
META = "cc-by-nc-4.0"


def write_networks(work: Work, source: Path, config: ConvertConfig, card: Path) -> None:
    """Publish I-JEPA's weights in the format of `config`, with the card; of a folder, inside it."""
    networks, out = read_networks(source, config.arch), work.plan.out
    networks.check()
    held = [which for which, part in ENCODERS.items() if part in networks.parts]
    difference = None
    if config.to == "onnx":
        encoder = own.encoder_of(networks, config.which)
        difference = _write_onnx(work, encoder, source.name, config.license)
    else:
        target = work.folder if work.plan.is_folder else work.folder / out.name
        writers.WRITERS[config.to](networks, target, config.which)
    which = config.which if config.which in held else held[0]
    kept, size = writers.kept_parts(networks, config.to, which), networks.config.encoder
    holds = ", ".join(PART_NAMES[part] for part in kept)
    text = model_card(networks, config, out.name, holds, load_call(config.to, out.name, which))
    facts = {
        "holds": holds,
        "left_out": [part for part in networks.parts if part not in kept],
        "arch": f"{size.arch}/{size.patch_px}@{networks.config.data.image_px}",
        "which": which,
        "largest_difference": difference,
    }
    write_bytes(work.folder / CARD if work.plan.is_folder else card, text.encode())
    work.publish({"converted": facts})


def write_foreign(work: Work, spec: EncoderSpec, config: ConvertConfig) -> None:
    """Publish any encoder as ONNX without a card; what is known of it stands in that file."""
    encoder, kind = spec.load(), KINDS.get(spec.kind)
    licence = config.license or (kind.licence if kind else None)
    facts = {
        "holds": "encoder",
        "left_out": [],
        "arch": encoder.provenance.arch or spec.text,
        "which": spec.which,
        "largest_difference": _write_onnx(work, encoder, spec.text, licence),
    }
    work.publish({"converted": facts})


def _write_onnx(work: Work, encoder: Encoder, source: str, licence: str | None) -> float:
    is_folder, size = work.plan.is_folder, writers.weight_bytes(encoder)
    if size > writers.FILE_BYTES and not is_folder:
        raise IjepaError(
            f"An .onnx file holds 2 GB at most, and the weights are {size / 1e9:.1f} GB; name a "
            f"folder, such as {work.plan.out.with_suffix('')}, which has them in a second file."
        )
    is_meta = encoder.provenance.origin == "published"
    notes = {
        "source": source,
        "licence": META if is_meta else licence or "not stated",
        "provenance": encoder.provenance.model_dump(mode="json"),
        "weights_sha256": encoder.weights_sha256,
        "made_by": f"ijepa {VERSION}",
    }
    out = work.folder / (ONNX if is_folder else work.plan.out.name)
    return writers.write_onnx(encoder, out, notes)


def model_card(networks: Networks, config: ConvertConfig, name: str, holds: str, load: str) -> str:
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
    environment = templates("convert", html=False)
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
