"""Which encoder is it? Answered from its name and files, without loading weights."""

import importlib
import re
from pathlib import Path

from ijepa.config import ExtractConfig, FinetuneConfig
from ijepa.encoders.catalogue import KINDS
from ijepa.errors import IjepaError
from ijepa.files import file_sha256, fingerprint_of
from ijepa.records import read_record, record_path

LAST = Path("checkpoints") / "last.pt"


def encoder_fingerprint(config: ExtractConfig | FinetuneConfig) -> str:
    """Equal for two names of the same frozen encoder, different for different weights.

    Raises:
        IjepaError: no such encoder.
    """
    kind, colon, rest = config.encoder.partition(":")
    if config.encoder == "pixels":
        return fingerprint_of("pixels")
    if colon and kind == "random":
        if Path(rest).exists():
            return fingerprint_of(["initial", weights_fingerprint(Path(rest))])
        return fingerprint_of(["random", rest, config.seed])
    if kind in KINDS:
        files = [file_sha256(path) for path in _files(kind, rest)]
        name = rest.partition("@")[0] if kind == "timm" else ""  # which reads the file in its way
        return fingerprint_of([kind, name, config.which, files])
    if colon and kind == "published":
        arch, path = published_name(rest)
        return fingerprint_of([config.which, weights_fingerprint(path), arch])
    if not Path(config.encoder).exists():
        raise IjepaError(
            f"There is no encoder {config.encoder!r}; give a run folder, a checkpoint file, "
            f"random:RUN, random:ARCH such as random:vit_small/16@224, pixels, or another kind "
            f"of `ijepa encoders`."
        )
    return fingerprint_of([config.which, weights_fingerprint(Path(config.encoder))])


def published_name(name: str) -> tuple[str | None, Path]:
    """Architecture, if it is named, and file of `[ARCH@]FILE`.

    Raises:
        IjepaError: there is no such file.
    """
    parts = re.fullmatch(r"(?:(vit_\w+|\d+x\d+x\d+)@)?(.+)", name)
    if not parts or not Path(parts[2]).exists():
        raise IjepaError(f"published:{name} names no file; it is published:[ARCH@]FILE.")
    return parts[1], Path(parts[2])


def checkpoint_path(path: Path) -> Path:
    """The checkpoint that a run folder or file names.

    Raises:
        IjepaError: a folder without a finished run.
    """
    if path.is_file():
        return path
    if not (path / LAST).is_file():
        raise IjepaError(
            f"{path} is no finished run: there is no {path / LAST}. "
            f"Finish `ijepa pretrain`, or name a file in {path}.partial/checkpoints."
        )
    return path / LAST


def _files(kind: str, rest: str) -> list[Path]:
    """What decides what an encoder of others is."""
    if KINDS[kind].takes != "FILE":
        files: list[Path] = importlib.import_module(KINDS[kind].home).weight_files(rest)
        return files
    if not Path(rest).is_file():
        raise IjepaError(
            f"There is no file {rest or kind + ':'}; `ijepa encoders` says where from."
        )
    return [Path(rest)]


def weights_fingerprint(path: Path) -> str:
    """A finished run is known by its record, time included; any other file by its bytes.

    Raises:
        IjepaError: a folder that holds no weights.
    """
    if path.is_dir() and read_record(path):
        return file_sha256(record_path(path))
    return file_sha256(checkpoint_path(path))
