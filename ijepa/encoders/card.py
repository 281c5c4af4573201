"""The model card that stands beside converted weights: Markdown, as model hubs show it."""

import re
from collections.abc import Sequence

from ijepa.encoders.formats import ENCODERS, Networks
from ijepa.recipes import dump_yaml
from ijepa.text import one_line

NON_COMMERCIAL = "cc-by-nc-4.0"
LICENCES = {
    "run": "Trained with ijepa; whoever trained these weights says under which licence they stand.",
    "published": (
        "These are weights published by Meta at facebookresearch/ijepa, under CC BY-NC 4.0 (no "
        "commercial use); so are all files converted from them."
    ),
}
UNSURE = (
    "The file that these weights came from does not say it. Weights published by Meta at "
    "facebookresearch/ijepa, and whatever was converted from them (IJepaModel on the hub, the "
    "`*_ijepa` names of timm), stand under CC BY-NC 4.0 (no commercial use)."
)


def model_card(
    networks: Networks, to: str, which: str, out: str, scores: Sequence[Sequence[str]]
) -> str:
    """Say what the weights are, how to load them, how well they score, and their licence.

    Args:
        networks: what was written.
        to: the format.
        which: encoder, where the format has room for one.
        out: name of the file or folder.
        scores: of probes on this encoder: protocol, label, encoder, top-1 in percent, interval.
    """
    sections = [
        _front_matter(networks, to),
        f"# {_plain(out)}\n\nI-JEPA ([Assran et al., CVPR 2023](https://arxiv.org/abs/2301.08243)) "
        f"weights, {held_text(networks, to, which)}.",
        "## Load\n\n```python\n" + _loading(networks, to, which, out) + "\n```",
        "## What they are\n\n" + _table(("", ""), _facts(networks)),
    ]
    if scores:
        head = ("protocol", "label", "encoder", "top-1 %", "95% interval")
        sections.append("## Scores\n\n" + _table(head, scores))
    sections.append("## Licence\n\n" + LICENCES.get(networks.provenance.origin or "", UNSURE))
    sections.append("## Configuration\n\n" + _configuration(networks))
    return "\n\n".join(section for section in sections if section) + "\n"


def held_text(networks: Networks, to: str, which: str) -> str:
    """Which networks a file of that format holds, in words."""
    if to in ("timm", "hf"):
        return f"the {which} encoder"
    parts = [part.replace("_", " ") for part in networks.held(to, which)]
    return ", ".join("context encoder" if part == "encoder" else part for part in parts)


def timm_call(out: str) -> str:
    """The call of timm that makes the network in a folder of `--to timm`."""
    return f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)"


def _front_matter(networks: Networks, to: str) -> str:
    library = {"hf": "transformers", "timm": "timm"}.get(to, "ijepa")
    lines = [f"library_name: {library}", "pipeline_tag: image-feature-extraction"]
    if networks.provenance.origin == "published":
        lines.append(f"license: {NON_COMMERCIAL}")
    return "\n".join(["---", *lines, "---"])


def _loading(networks: Networks, to: str, which: str, out: str) -> str:
    data = networks.config.data
    view = f"# mean {data.mean}, std {data.std}, {data.image_px} pixels"
    if to == "hf":
        return (
            "from transformers import AutoImageProcessor, AutoModel\n\n"
            f"model = AutoModel.from_pretrained({out!r})\n"
            f"processor = AutoImageProcessor.from_pretrained({out!r})\n"
            "features = model(**processor(image, return_tensors='pt')).last_hidden_state.mean(1)"
        )
    if to == "timm":
        return (
            f"import timm\n\nmodel = {timm_call(out)}\n"
            "data = timm.data.resolve_model_data_config(model)\n"
            "transform = timm.data.create_transform(**data)\n"
            "features = model(transform(image).unsqueeze(0))"
        )
    held = [name for name, part in ENCODERS.items() if part in networks.parts]
    chosen = which if which in held else held[0]
    return f"import ijepa\n\nencoder = ijepa.load_encoder({out!r}, which={chosen!r})\n{view}"


def _facts(networks: Networks) -> list[tuple[str, str]]:
    config, known = networks.config, networks.provenance
    source = "a run of ijepa" if known.origin == "run" else f"{known.origin} weights"
    numbers = {"epochs": known.epochs, "steps": known.steps, "images seen": known.images}
    rows = [
        ("architecture", f"{config.encoder.arch}, patches of {config.encoder.patch_px} pixels"),
        (
            "images",
            f"{config.data.image_px} pixels; mean {config.data.mean}, std {config.data.std}",
        ),
        (
            "evaluation view",
            f"centre crop of {config.data.eval_crop_fraction:.4g} of the short side",
        ),
        ("first read from", source),
        *((name, f"{value:,}") for name, value in numbers.items() if value is not None),
    ]
    return rows + ([("pretraining data", f"fingerprint `{known.shards}`")] if known.shards else [])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text of others that stays what it is in Markdown: in its cell, neither link nor element."""
    return re.sub(r"[|<\[]", r"\\\g<0>", one_line(text))


def _configuration(networks: Networks) -> str:
    if not networks.provenance.settings:
        return (
            "How they were trained is not recorded in the file that they came from; architecture, "
            "patches and image size were read from it."
        )
    return f"```yaml\n{dump_yaml(networks.config)}```"
