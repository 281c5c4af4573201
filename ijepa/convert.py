"""Weights from one format to another, bit for bit or as ONNX, with a model card beside them."""

from pathlib import Path
from typing import TYPE_CHECKING

from ijepa.config import RUNTIME, Config, ConvertConfig, Runtime, StrPath
from ijepa.encoders.spec import KINDS, PART_NAMES, EncoderSpec, weights_fingerprint
from ijepa.errors import IjepaError
from ijepa.files import LAST, file_sha256, fingerprint_of, write_bytes
from ijepa.progress import Progress, automatic
from ijepa.records import read_record
from ijepa.stage import StagePlan, Work, exclusive_work
from ijepa.version import VERSION as VERSION_OF_IJEPA

if TYPE_CHECKING:
    from ijepa.encoders.base import Encoder

__all__ = ["FOLDERS", "PART_NAMES", "ConvertResult", "convert"]

VERSION = 6
CARD, ONNX = "README.md", "model.onnx"
FOLDERS = ("hf", "timm")  # formats of more than one file
SUFFIX = {"safetensors": ".safetensors", "onnx": ".onnx"}  # of files that are known by it
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")


class ConvertResult(Config):
    """Converted weights."""

    out: Path  # file, or folder for `hf` and `timm`
    card: Path | None  # the model card; None for ONNX files of encoders that are not I-JEPA's
    cached: bool
    holds: str  # which networks, in words
    left_out: tuple[str, ...]  # parts for which the format has no room
    load: str  # a line of Python that loads them
    arch: str  # architecture, patch and image size
    largest_difference: float | None = None  # of ONNX's numbers from the encoder's own; else None


def convert(
    source: StrPath,
    out: StrPath,
    config: ConvertConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
) -> ConvertResult:
    """Write the weights of `source` in another format; the numbers stay the same.

    Args:
        source: a run or checkpoint of ours, a published file, a timm file, or a folder of
            timm or of transformers' IJepaModel; which it is, is told by its content. For ONNX also
            any encoder of `ijepa encoders` with patch tokens, such as timm:NAME.
        out: file to make, or folder for `hf` and `timm`; ONNX makes `OUT/model.onnx` in a folder.
        config: into which format, and which encoder where it has room for one.
        runtime: `force` makes it again.
        progress: hears when it is done.

    Raises:
        IjepaError: weights that are not I-JEPA's, not whole, or without the encoder asked for.
    """
    source, out = Path(source), Path(out)
    is_folder = _makes_folder(out, config)
    # Beside a file the card has its name, since other weights may lie in the same folder.
    card = out / CARD if is_folder else out.with_name(f"{out.name}.{CARD}")
    foreign = None
    if config.to == "onnx" and not source.exists():  # no file or folder holds it
        foreign = EncoderSpec.parse(str(source), which=config.which)
        if foreign.kind == "run":  # which a mistyped name becomes
            raise IjepaError(f"There is nothing to convert at {source}.")
    if not is_folder and not foreign and card.exists() and read_record(out) is None:
        raise IjepaError(f"{card} exists and is no card of ijepa's; choose another output.")
    if foreign:
        fingerprint = foreign.fingerprint(progress)
    elif not source.exists():
        raise IjepaError(f"There is nothing to convert at {source}.")
    elif source.is_dir() and not (source / LAST).is_file():  # a folder of timm or transformers
        files = sorted([*source.glob("*.json"), *source.glob("*.safetensors")])
        fingerprint = fingerprint_of({path.name: file_sha256(path) for path in files})
    else:
        fingerprint = weights_fingerprint(source)
    inputs = {"source": fingerprint}
    plan = StagePlan("convert", VERSION, config, inputs, out, is_folder=is_folder)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            _write(work, foreign or source, config, card)
            progress("convert files", 1, 1)
        found = (read_record(out) or {})["converted"]  # so that nobody waits for torch
    load, shown = _load_call(config.to, str(out), found.pop("which")), None if foreign else card
    return ConvertResult(out=out, card=shown, cached=work.cached, load=load, **found)


def _makes_folder(out: Path, config: ConvertConfig) -> bool:
    """Whether `out` becomes a folder; refuses a name that does not fit the format."""
    is_folder = config.to in FOLDERS or (config.to == "onnx" and out.suffix != SUFFIX["onnx"])
    if is_folder and out.suffix in (*WEIGHT_SUFFIXES, SUFFIX["onnx"]):
        raise IjepaError(
            f"--to {config.to} makes a folder, and {out} is the name of a file; name a folder, "
            f"such as {out.with_suffix('')}."
        )
    if not is_folder and config.to not in SUFFIX and out.suffix in SUFFIX.values():
        raise IjepaError(f"{out} would be no {out.suffix[1:]} file; name it .pth.tar or .pt.")
    if config.to == "safetensors" and out.suffix != SUFFIX["safetensors"]:
        raise IjepaError(f"{out} would be a safetensors file; name it {out.stem}.safetensors.")
    return is_folder


def _write_onnx(work: Work, encoder: "Encoder", source: str, licence: str | None) -> float:
    from ijepa.encoders import write
    from ijepa.encoders.card import META

    is_folder, size = work.plan.is_folder, write.weight_bytes(encoder)
    if size > write.FILE_BYTES and not is_folder:
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
        "made_by": f"ijepa {VERSION_OF_IJEPA}",
    }
    out = work.folder / (ONNX if is_folder else work.plan.out.name)
    return write.write_onnx(encoder, out, notes)


def _write(work: Work, source: Path | EncoderSpec, config: ConvertConfig, card: Path) -> None:
    from ijepa.encoders import formats, own, write
    from ijepa.encoders.card import model_card

    if isinstance(source, EncoderSpec):  # what is known of it stands in the ONNX file
        encoder, kind = source.load(), KINDS.get(source.kind)
        licence = config.license or (kind.licence if kind else None)
        facts: dict[str, object] = {
            "holds": "encoder",
            "left_out": [],
            "arch": encoder.provenance.arch or source.text,
            "which": source.which,
            "largest_difference": _write_onnx(work, encoder, source.text, licence),
        }
        work.publish({"converted": facts})
        return
    networks, out = formats.read_networks(source, config.arch), work.plan.out
    networks.check()
    held = [which for which, part in formats.ENCODERS.items() if part in networks.parts]
    difference = None
    if config.to == "onnx":
        encoder = own.encoder_of(networks, config.which)
        difference = _write_onnx(work, encoder, source.name, config.license)
    else:
        target = work.folder if work.plan.is_folder else work.folder / out.name
        write.WRITERS[config.to](networks, target, config.which)
    which = config.which if config.which in held else held[0]
    kept, size = write.kept_parts(networks, config.to, which), networks.config.encoder
    holds = ", ".join(PART_NAMES[part] for part in kept)
    load = _load_call(config.to, out.name, which)
    text = model_card(networks, config, out.name, holds, load)
    facts = {
        "holds": holds,
        "left_out": [part for part in networks.parts if part not in kept],
        "arch": f"{size.arch}/{size.patch_px}@{networks.config.data.image_px}",
        "which": which,
        "largest_difference": difference,
    }
    write_bytes(work.folder / CARD if work.plan.is_folder else card, text.encode())
    work.publish({"converted": facts})


def _load_call(to: str, out: str, which: str) -> str:
    if to == "timm":
        return f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)"
    if to == "onnx":
        path = out if out.endswith(SUFFIX["onnx"]) else f"{out}/{ONNX}"
        return f"onnxruntime.InferenceSession({path!r})"
    if to == "hf":
        return f"transformers.AutoModel.from_pretrained({out!r})"
    return f"ijepa.load_encoder({out!r}, which={which!r})"
