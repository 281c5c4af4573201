"""The model card beside converted weights, with the metadata of the Hugging Face Hub."""

import re
from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCardData

from ijepa.config import ConvertConfig
from ijepa.encoders.formats import Networks
from ijepa.errors import IjepaError
from ijepa.paper import IN1K_DATA, IN22K_DATA
from ijepa.recipes import dump_yaml
from ijepa.text import one_line

LIBRARIES = {"hf": "transformers", "timm": "timm", "onnx": "onnx"}  # of other formats: ijepa
TAGS = ["i-jepa", "self-supervised-learning", "vision-transformer"]
PRETRAINED_ON = {IN1K_DATA: "ILSVRC/imagenet-1k", IN22K_DATA: "timm/imagenet-22k-wds"}  # on the hub
META = "cc-by-nc-4.0"
META_LICENCE = (
    "These weights were published by Meta at facebookresearch/ijepa under CC BY-NC 4.0 (no "
    "commercial use). The licence also holds for all files converted from them."
)
OWN_LICENCE = (
    "The licence is not stated. Whoever trained these weights decides on it; `ijepa convert "
    "--license` records it."
)
UNSURE = (
    "The file that these weights came from does not state a licence. Weights published by Meta at "
    "facebookresearch/ijepa, and all files converted from them (IJepaModel on the hub, the "
    "`*_ijepa` names of timm), are under CC BY-NC 4.0 (no commercial use)."
)
UNRECORDED = (
    "The file that these weights came from does not record how they were trained. Architecture, "
    "patch size and image size were read from it."
)
PAPER = "[Assran et al., CVPR 2023](https://arxiv.org/abs/2301.08243)"


def model_card(
    networks: Networks,
    config: ConvertConfig,
    name: str,
    holds: str,
    load: str,
    scores: Sequence[Sequence[str]],
    results: Sequence[EvalResult],
) -> str:
    """Markdown that says what weights are, how to load them, their scores, and their licence.

    Args:
        networks: of which some were written.
        config: the format, and the licence that the user named.
        name: what loads them: a file, a folder, or a name on the hub.
        holds: what they are, in words.
        load: a call in Python that loads them.
        scores: of probes on this encoder and others: protocol, label, encoder, top-1, interval.
        results: the scores of this encoder, for the hub.

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
    licence = META if known.origin == "published" else licence
    front = ModelCardData(
        library_name=LIBRARIES.get(config.to, "ijepa"),
        pipeline_tag="image-feature-extraction",
        license=licence,
        tags=TAGS,
        datasets=[PRETRAINED_ON[known.data]] if known.data in PRETRAINED_ON else None,
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=list(results) or None,
    )
    words = {"run": OWN_LICENCE, "published": META_LICENCE}.get(known.origin or "", UNSURE)
    if licence and known.origin != "published":
        words = f"`{licence}`, as named by whoever converted these weights."
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
    head = ("protocol", "label", "encoder", "top-1 %", "95% interval")
    sections = [
        f"---\n{front.to_yaml()}\n---",
        f"# {_plain(name)}\n\nI-JEPA ({PAPER}) weights, {holds}.",
        f"## Load\n\n```python\n{_code(config.to, name, load)}\n```",
        f"## What they are\n\n{_table(('', ''), facts)}",
        *([f"## Scores\n\n{_table(head, scores)}"] if scores else []),
        f"## Licence\n\n{words}",
        "## Configuration\n\n"
        + (f"```yaml\n{dump_yaml(settings)}```" if known.settings else UNRECORDED),
    ]
    return "\n\n".join(sections) + "\n"


def _code(to: str, name: str, load: str) -> str:
    """Lines of Python from an image to its features."""
    if to == "hf":
        return (
            "from PIL import Image\nfrom transformers import AutoImageProcessor, AutoModel\n\n"
            f"model = AutoModel.from_pretrained({name!r})\n"
            f"processor = AutoImageProcessor.from_pretrained({name!r})\n"
            "image = Image.open('image.jpg')\n"
            "features = model(**processor(image, return_tensors='pt')).last_hidden_state.mean(1)"
        )
    if to == "timm":
        return (
            f"import timm\nfrom PIL import Image\n\nmodel = {load}.eval()\n"
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
            "image = Image.open('image.jpg').convert('RGB')\n"
            "features = model(transform(image).unsqueeze(0))"
        )
    if to == "onnx":
        return (
            f"import onnxruntime\n\nsession = {load}\n"
            "print(session.get_modelmeta().custom_metadata_map)  # size, mean, std, crop\n"
            "# images: (n, 3, height, width) float32, cut and normalised\n"
            "patch_tokens, features = session.run(None, {'images': images})"
        )
    return f"import ijepa\n\nencoder = {load}\nfeatures = encoder.encode('image.jpg')"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text of others that stays what it is in Markdown: in its cell, neither link nor element."""
    return re.sub(r"[|<\[]", r"\\\g<0>", one_line(text))
