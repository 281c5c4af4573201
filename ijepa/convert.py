"""Weights from one format to another, bit for bit, with a model card beside them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ijepa.config import RUNTIME, Config, ConvertConfig, Runtime, StrPath
from ijepa.encoders.spec import LAST, PARTS, weights_fingerprint
from ijepa.errors import IjepaError
from ijepa.files import file_sha256, fingerprint_of, write_bytes
from ijepa.progress import Progress, automatic
from ijepa.records import read_record, record_path
from ijepa.results.record import TRAINED_ON, Result, Score, read_result
from ijepa.stage import StagePlan, Work, exclusive_work

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

VERSION = 5
CARD = "README.md"
FOLDERS = ("hf", "timm")  # formats of more than one file
HUB_DATASETS = {  # by kind of source
    "cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "imagenet": "ILSVRC/imagenet-1k",
}  # fmt: skip
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")


class ConvertResult(Config):
    """Converted weights.

    Attributes:
        out: file, or folder for `hf` and `timm`; its model card is `card`.
        cached: they were there already.
        holds: which networks, in words; `left_out` had no room.
        load: a line of Python that loads them.
        arch: architecture, patch and image size.
        url: where they were uploaded; empty without `push`.
    """

    out: Path
    card: Path
    cached: bool
    holds: str
    left_out: tuple[str, ...]
    load: str
    arch: str
    url: str = ""


def convert(
    source: StrPath,
    out: StrPath,
    config: ConvertConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
    scores: Sequence[StrPath] = (),
    private: bool = False,
) -> ConvertResult:
    """Write the weights of `source` in another format; the numbers stay the same.

    Args:
        source: a run or checkpoint of ours, a published file, a timm file, or a folder of
            timm or of transformers' IJepaModel; which it is, is told by its content.
        out: file to make, or folder for `hf` and `timm`.
        config: into which format, which encoder where it has room for one, and where to upload it.
        runtime: `force` makes it again.
        progress: hears when it is done.
        scores: results of `ijepa probe` on this encoder, for the model card.
        private: with `config.push`, make a new model on the hub private.

    Raises:
        IjepaError: weights that are not I-JEPA's, not whole, or without the encoder asked for;
            scores of another encoder; a name, token or connection with which nothing is uploaded.
    """
    source, out = Path(source), Path(out)
    results = [Path(path) for path in scores]
    is_folder = config.to in FOLDERS
    if is_folder and out.suffix in WEIGHT_SUFFIXES:
        raise IjepaError(
            f"--to {config.to} makes a folder, and {out} is the name of a file; name a folder, "
            f"such as {out.with_suffix('')}."
        )
    if not is_folder and out.suffix == ".safetensors":
        raise IjepaError(f"{out} would be no safetensors file; name it .pth.tar or .pt.")
    if config.push:
        from ijepa.encoders.hub import check_push, push_folder

        if not is_folder:
            raise IjepaError(f"--push takes the hub's formats, --to timm or hf, not {config.to}.")
        check_push(config.push)
    # Beside a file the card has its name, since other weights may lie in the same folder.
    card = out / CARD if is_folder else out.with_name(f"{out.name}.{CARD}")
    if not is_folder and card.exists() and read_record(out) is None:
        raise IjepaError(f"{card} exists and is no card of ijepa's; choose another output.")
    inputs = {
        "source": _fingerprint(source),
        "scores": fingerprint_of([file_sha256(path) for path in results]),
    }
    plan = StagePlan("convert", VERSION, config, inputs, out, is_folder=is_folder)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            _write(work, source, config, card, [read_result(path) for path in results])
            progress("convert files", 1, 1)
        found = (read_record(out) or {})["converted"]  # so that nobody waits for torch
    load, url = _load_call(config.to, str(out), found.pop("which")), ""
    if config.push:
        record = record_path(out).name  # it names files of this machine
        url = push_folder(out, config.push, private=private, leave_out=record)
    return ConvertResult(out=out, card=card, cached=work.cached, load=load, url=url, **found)


def _write(
    work: Work, source: Path, config: ConvertConfig, card: Path, results: Sequence[Result]
) -> None:
    from ijepa.encoders import base, formats, write
    from ijepa.encoders.card import model_card

    networks, out = formats.read_networks(source, config.arch), work.plan.out
    networks.check()
    held = [which for which, part in formats.ENCODERS.items() if part in networks.parts]
    ours = {base.weights_sha256(networks.encoder(one).state_dict()) for one in held if results}
    for result in results:
        if not ours & {score.weights_sha256 for score in result}:
            raise IjepaError(
                f"The scores of {result[0].protocol} on {result[0].label} are of "
                f"{result[0].encoder}, other weights than those of {networks.source}."
            )
    target = work.folder if work.plan.is_folder else work.folder / out.name
    write.WRITERS[config.to](networks, target, config.which)
    which = config.which if config.which in held else held[0]
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
    kept, encoder = write.kept_parts(networks, config.to, which), networks.config.encoder
    holds = ", ".join(PARTS[part] for part in kept)
    name = config.push or out.name
    load = _load_call(config.to, name, which, on_hub=bool(config.push))
    own = [score for result in results for score in result if score.weights_sha256 in ours]
    text = model_card(networks, config, name, holds, load, scores, [*map(_eval_result, own)])
    facts = {
        "holds": holds,
        "left_out": [part for part in networks.parts if part not in kept],
        "arch": f"{encoder.arch}/{encoder.patch_px}@{networks.config.data.image_px}",
        "which": which,
    }
    write_bytes(work.folder / CARD if work.plan.is_folder else card, text.encode())
    work.publish({"converted": facts})


def _eval_result(score: Score) -> "EvalResult":
    """A score as the hub's `model-index` has it; a folder of this machine by its last name."""
    from huggingface_hub import EvalResult

    from ijepa.data.sources.kinds import KINDS

    source = score.source.partition(TRAINED_ON)[0]
    kind, _, rest = source.partition(":")
    if kind not in KINDS:
        kind, rest = "", source
    name = rest.partition(":")[0] if kind == "torchvision" else Path(rest).name
    data = kind if kind in (*HUB_DATASETS, "scenes") or not name else name
    data = data or "images"  # such as "."
    own = re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "imagefolder"  # the hub's word
    return EvalResult(
        task_type="image-classification",
        dataset_type=HUB_DATASETS.get(kind, own),
        dataset_name=data,
        dataset_split=score.test_split,
        metric_type="accuracy",
        metric_value=round(score.top1, 4),
        metric_name=f"top-1, {score.protocol} {score.setting}".strip() + f" on {score.label}",
    )


def _load_call(to: str, out: str, which: str, *, on_hub: bool = False) -> str:
    if to == "timm":
        place = f"{'hf-hub' if on_hub else 'local-dir'}:{out}"
        return f"timm.create_model({place!r}, pretrained=True)"
    if to == "hf":
        return f"transformers.AutoModel.from_pretrained({out!r})"
    return f"ijepa.load_encoder({out!r}, which={which!r})"


def _fingerprint(source: Path) -> str:
    """Fingerprint of the source: the weights of a run or file, all files of another folder."""
    if source.is_dir() and not (source / LAST).is_file():
        files = sorted([*source.glob("*.json"), *source.glob("*.safetensors")])
        return fingerprint_of({path.name: file_sha256(path) for path in files})
    if not source.exists():
        raise IjepaError(f"There is nothing to convert at {source}.")
    return weights_fingerprint(source)
