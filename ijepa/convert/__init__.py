"""Weights from one format to another, bit for bit or as ONNX, with a model card beside them."""

from pathlib import Path

from ijepa.config import RUNTIME, Config, ConvertConfig, Runtime, StrPath
from ijepa.encoders.spec import PART_NAMES, EncoderSpec, weights_fingerprint
from ijepa.errors import IjepaError
from ijepa.files import LAST, file_sha256, fingerprint_of, sibling
from ijepa.progress import Progress, automatic
from ijepa.records import read_record, record_path
from ijepa.stage import StagePlan, exclusive_work

__all__ = ["FOLDERS", "PART_NAMES", "ConvertResult", "convert"]

VERSION = 7
CARD, ONNX = "README.md", "model.onnx"
OPENING = "I-JEPA ([Assran et al., CVPR 2023]"  # of every card
FOLDERS = ("hf", "timm")  # formats of more than one file
SUFFIX = {"safetensors": ".safetensors", "onnx": ".onnx"}  # of files that are known by it
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")


class ConvertResult(Config):
    """Converted weights."""

    out: Path  # file, or folder for `hf` and `timm`
    card: Path | None  # the model card, if it is there; ONNX files of other encoders have none
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
    card = out / CARD if is_folder else sibling(out, f".{CARD}")
    foreign = None if source.exists() else EncoderSpec.parse(str(source), which=config.which)
    if foreign and (config.to != "onnx" or foreign.kind == "run"):  # as a mistyped name is
        raise IjepaError(f"There is nothing to convert at {source}.")
    may_lie_there = is_folder or foreign or record_path(out).exists() or not card.exists()
    if not may_lie_there and OPENING not in card.read_text(errors="replace"):
        raise IjepaError(f"{card} exists and is no card of ijepa's; choose another output.")
    if foreign:
        fingerprint = foreign.fingerprint(progress)
    elif source.is_dir() and not (source / LAST).is_file():  # a folder of timm or transformers
        files = sorted([*source.glob("*.json"), *source.glob("*.safetensors")])
        fingerprint = fingerprint_of({path.name: file_sha256(path) for path in files})
    else:
        fingerprint = weights_fingerprint(source)
    inputs = {"source": fingerprint}
    plan = StagePlan("convert", VERSION, config, inputs, out, is_folder=is_folder)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            from ijepa.convert import write

            if foreign:
                write.write_foreign(work, foreign, config)
            else:
                write.write_networks(work, source, config, card)
            progress("convert files", 1, 1)
        found = (read_record(out) or {})["converted"]  # so that nobody waits for torch
    load, shown = load_call(config.to, str(out), found.pop("which")), None if foreign else card
    if shown and not shown.exists():  # somebody has removed it
        shown = None
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


def load_call(to: str, out: str, which: str) -> str:
    if to == "timm":
        return f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)"
    if to == "onnx":
        path = out if out.endswith(SUFFIX["onnx"]) else f"{out}/{ONNX}"
        return f"onnxruntime.InferenceSession({path!r})"
    if to == "hf":
        return f"transformers.AutoModel.from_pretrained({out!r})"
    return f"ijepa.load_encoder({out!r}, which={which!r})"
