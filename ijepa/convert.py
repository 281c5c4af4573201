"""Weights from one format to another, bit for bit, with a model card beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ijepa.config import RUNTIME, Config, ConvertConfig, Runtime, StrPath
from ijepa.encoders.spec import LAST
from ijepa.errors import IjepaError
from ijepa.files import file_sha256, fingerprint_of, write_bytes
from ijepa.progress import Progress, silent
from ijepa.records import read_record
from ijepa.results.record import Result, read_result
from ijepa.stage import StagePlan, Work, exclusive_work

if TYPE_CHECKING:
    from ijepa.encoders.formats import Networks

VERSION = 3
CARD = "README.md"
FOLDERS = ("hf", "timm")  # formats of more than one file
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")


class ConvertResult(Config):
    """Converted weights.

    Attributes:
        out: file, or folder for `hf` and `timm`; its model card is `card`.
        cached: they were there already.
        holds: which networks, in words; `left_out` had no room.
        load: a line of Python that loads them.
        arch: architecture, patch and image size.
    """

    out: Path
    card: Path
    cached: bool
    holds: str
    left_out: tuple[str, ...]
    load: str
    arch: str


def convert(
    source: StrPath,
    out: StrPath,
    config: ConvertConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
    scores: Sequence[StrPath] = (),
) -> ConvertResult:
    """Write the weights of `source` in another format; the numbers stay the same.

    Args:
        source: a run or checkpoint of ours, a published file, a timm file, or a folder of
            timm or of transformers' IJepaModel; which it is, is told by its content.
        out: file to make, or folder for `hf` and `timm`.
        config: into which format, and which encoder where it has room for one.
        runtime: `force` makes it again.
        progress: hears when it is done.
        scores: results of `ijepa probe` on this encoder, for the model card.

    Raises:
        IjepaError: weights that are not I-JEPA's, not whole, or without the encoder asked for;
            scores of another encoder.
    """
    source, out = Path(source), Path(out)
    results = [Path(path) for path in scores]
    if config.to in FOLDERS and out.suffix in WEIGHT_SUFFIXES:
        raise IjepaError(
            f"--to {config.to} makes a folder, and {out} is the name of a file; name a folder, "
            f"such as {out.with_suffix('')}."
        )
    if config.to in ("published", "ours") and out.suffix == ".safetensors":
        raise IjepaError(f"{out} would be no safetensors file; name it .pth.tar or .pt.")
    inputs = {
        "source": _fingerprint(source),
        "scores": fingerprint_of([file_sha256(path) for path in results]),
    }
    plan = StagePlan("convert", VERSION, config, inputs, out, is_folder=config.to in FOLDERS)
    card = _card_path(out, plan.is_folder)
    if not plan.is_folder and card.exists() and read_record(out) is None:
        raise IjepaError(f"{card} exists and is no card of ijepa's; choose another output.")
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            from ijepa.encoders.formats import read_networks  # here: torch takes its time

            networks = read_networks(source, config.arch)
            networks.check()
            found = [read_result(path) for path in results]
            _refuse_foreign_scores(networks, found)
            _write(work, networks, config, found)
            progress("convert files", 1, 1)
        return _result(out, config, cached=work.cached)


def _write(
    work: Work, networks: "Networks", config: ConvertConfig, results: Sequence[Result]
) -> None:
    from ijepa.encoders.card import model_card
    from ijepa.encoders.formats import WRITERS

    out, is_folder = work.plan.out, work.plan.is_folder
    target = work.folder if is_folder else work.folder / out.name
    WRITERS[config.to](networks, target, config.which)
    scores = [
        (
            f"{score.protocol} {score.setting}".strip(),
            score.label,
            score.encoder,
            f"{100 * score.top1:.2f}",
            "{:.2f} to {:.2f}".format(*(100 * end for end in score.top1_interval)),
        )
        for result in results
        for score in result
    ]
    card = model_card(networks, config.to, config.which, out.name, scores).encode()
    if is_folder:
        write_bytes(work.folder / CARD, card)
        work.publish_folder({"converted": _facts(networks, out, config)})
    else:
        write_bytes(_card_path(out, is_folder), card)
        work.publish_file({"converted": _facts(networks, out, config)})


def _result(out: Path, config: ConvertConfig, *, cached: bool) -> ConvertResult:
    """From the record, so that nobody waits for torch."""
    facts = (read_record(out) or {})["converted"]
    load = facts["load"].replace(facts["out"], str(out))  # which may have been moved
    card = _card_path(out, config.to in FOLDERS)
    return ConvertResult(**facts | {"out": out, "card": card, "cached": cached, "load": load})


def _facts(networks: "Networks", out: Path, config: ConvertConfig) -> dict[str, Any]:
    from ijepa.encoders.card import held_text, timm_call

    held = networks.held(config.to, config.which)
    loads = {
        "timm": timm_call(str(out)),
        "hf": f"transformers.AutoModel.from_pretrained({str(out)!r})",
    }
    encoder = networks.config.encoder
    return {
        "out": str(out),
        "holds": held_text(networks, config.to, config.which),
        "left_out": [part for part in networks.parts if part not in held],
        "load": loads.get(config.to, f"ijepa.load_encoder({str(out)!r})"),
        "arch": f"{encoder.arch}/{encoder.patch_px}@{networks.config.data.image_px}",
    }


def _card_path(out: Path, is_folder: bool) -> Path:
    """Beside a file under its name, since other weights may lie in the same folder."""
    return out / CARD if is_folder else out.with_name(f"{out.name}.{CARD}")


def _refuse_foreign_scores(networks: "Networks", results: Sequence[Result]) -> None:
    from ijepa.encoders.base import weights_sha256
    from ijepa.encoders.formats import ENCODERS

    ours = {
        weights_sha256(networks.encoder(which).state_dict())
        for which, part in ENCODERS.items()
        if results and part in networks.parts
    }
    for result in results:
        scored = {score.weights_sha256 for score in result}
        if not scored & ours:
            raise IjepaError(
                f"The scores of {result[0].protocol} on {result[0].label} are of "
                f"{result[0].encoder}, other weights than those of {networks.source}."
            )


def _fingerprint(source: Path) -> str:
    """A finished run is known by its record, anything else by its bytes."""
    if (source / LAST).is_file():
        record = read_record(source)
        return fingerprint_of(record) if record else file_sha256(source / LAST)
    if source.is_dir():
        files = sorted([*source.glob("*.json"), *source.glob("*.safetensors")])
        return fingerprint_of({path.name: file_sha256(path) for path in files})
    if not source.is_file():
        raise IjepaError(f"There is nothing to convert at {source}.")
    return file_sha256(source)
