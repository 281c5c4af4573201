"""Names of encoders: parse one, fingerprint its files, load it by the module of its kind.

The kinds are entries of `catalogue.yaml`: a new one begins there, see CONTRIBUTING.

Nothing here needs torch until weights are loaded: a stage whose output is there does not wait.
"""

import importlib
import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import yaml
from pydantic import Field

from ijepa.config import (
    Config,
    ExtractConfig,
    FinetuneConfig,
    PixelStats,
    Size,
    StrPath,
    height_width,
)
from ijepa.errors import IjepaError
from ijepa.files import (
    BEST,
    CHECKPOINTS,
    LAST,
    file_sha256,
    fingerprint_of,
    names_in,
    no_file,
    sibling,
)
from ijepa.paper import TABLES
from ijepa.progress import Progress, silent
from ijepa.provenance import Provenance
from ijepa.records import read_record, record_path
from ijepa.text import did_you_mean

if TYPE_CHECKING:
    import torch

    from ijepa.encoders.base import Encoder

PART_NAMES = {  # of weights by name, in words
    "encoder": "context encoder", "predictor": "predictor", "target_encoder": "target encoder",
}  # fmt: skip
WHICH = ("target", "context")

MADE = {"shard": "a shard set", "extract": "a feature file", "train-decoder": "a decoder"}


class Kind(Config):
    """A line of the catalogue; `catalogue.yaml` explains all fields but `paper`."""

    encoder: str
    what: str
    pooling: str
    source: str = ""
    licence: str = ""
    licence_read: str = ""
    method: str | None = None
    paper: dict[str, tuple[int, ...]] = Field(default_factory=dict)  # its tables, by architecture
    home: str = Field("own", exclude=True)
    target: tuple[str, ...] = Field((), exclude=True)
    context: tuple[str, ...] = Field((), exclude=True)
    part: str = Field("", exclude=True)
    others: tuple[str, ...] = Field((), exclude=True)


class Catalogue(Config):
    """All that `--encoder` takes, our own first."""

    encoders: tuple[Kind, ...]


METHOD_ROWS = [  # ablations have no group
    (table.number, row) for table in TABLES for row in table.rows if row.group
]


def _kind(fields: dict[str, Any]) -> Kind:
    paper: dict[str, list[int]] = {}
    for number, row in METHOD_ROWS:
        if row.method == fields.get("method") and number not in paper.setdefault(row.arch, []):
            paper[row.arch].append(number)
    return Kind(**fields, paper=paper)


_BODY: dict[str, Any] = yaml.safe_load(
    resources.files("ijepa.encoders").joinpath("catalogue.yaml").read_text()
)
KINDS = {name: _kind(fields) for name, fields in _BODY["kinds"].items()}  # by what is before `:`
CATALOGUE = Catalogue(encoders=(*map(_kind, _BODY["own"]), *KINDS.values()))
RESNETS, HUGGINGFACE, WRITTEN = (_BODY[name] for name in ("resnets", "huggingface", "written"))
RELEASED = {  # by the names of files, of timm and of the hub
    space: {
        name: Provenance(**dict(zip(("method", "arch", "epochs", "data"), row, strict=True)))
        for name, row in models.items()
    }
    for space, models in _BODY["released"].items()
}


def released(space: str, name: str, seen: Provenance) -> Provenance:
    """Where a released model comes from, by its name, if its architecture agrees; else `seen`."""
    known = RELEASED[space].get(name)
    return known if known and known.arch == seen.arch else seen


class EncoderSpec(NamedTuple):
    """An encoder, as `--encoder` names it."""

    text: str  # as the user typed it
    kind: str  # `run`, `published`, `random`, `pixels`, or a key of `KINDS`
    # Of a model of timm or the hub; ARCH[/PATCH][@PX] of random weights; side of pixels' patches.
    name: str = ""
    file: Path | None = None  # file or folder of weights; None where `name` says all
    arch: str | None = None  # of weights whose shapes do not tell it
    which: str = "target"  # or `context`, where there are two
    image_px: int | Size | None = None  # another side, or (height, width), than the encoder's own
    seed: int = 0  # of random weights without a run
    pixels: PixelStats | None = None  # of the images, for random weights; None for 8-bit RGB

    @classmethod
    def parse(
        cls,
        text: StrPath,
        *,
        which: str = "target",
        checkpoint: str = "last",
        image_px: int | Size | None = None,
        seed: int = 0,
    ) -> Self:
        """Take a name apart; files are not opened yet, but a file named by half is refused.

        Of a run folder, `checkpoint` is a file in `checkpoints`, such as `best` or `epoch-0004`.
        """
        text = os.fspath(text)
        kind, colon, rest = text.partition(":")
        name, file, arch = rest, None, None
        if found := re.fullmatch(r"pixels(?:/([1-9]\d{0,3}))?", text):
            kind, name = "pixels", found[1] or ""
        elif colon and kind == "timm":
            name, at, path = rest.partition("@")
            if at and name and not path:
                raise IjepaError(f"timm:{name}@ names no file; it is timm:NAME@FILE.")
            file = Path(path) if at else None
        elif colon and kind in KINDS:
            file = None if kind == "hf" else Path(rest)
        elif colon and kind == "random":
            file = Path(rest) if Path(rest).exists() else None
        elif colon and kind == "published":
            found = re.fullmatch(r"(?:(vit_\w+|\d+x\d+x\d+)@)?(.+)", rest)
            arch, file = (found[1], Path(found[2])) if found else (None, Path(rest))
            if not found or not file.exists():
                raise IjepaError(f"{text} names no file; it is published:[ARCH@]FILE.")
        else:
            kind, name, file = "run", "", Path(text)
        file = _checkpoint_file(text, kind, file, checkpoint)
        return cls(text, kind, name, file, arch, which, image_px, seed)

    @classmethod
    def of(cls, config: ExtractConfig | FinetuneConfig) -> Self:
        """The encoder of a stage."""
        return cls.parse(
            config.encoder,
            which=config.which,
            checkpoint=config.checkpoint,
            image_px=config.image_px,
            seed=config.seed,
        )

    def fingerprint(self, progress: Progress = silent) -> str:
        """Equal for two names of the same frozen encoder, different for different weights."""
        if self.kind == "pixels":
            self.refuse_context()
            return fingerprint_of(["pixels", self.name] if self.name else "pixels")
        if self.kind == "random":
            if self.file:
                return fingerprint_of(["initial", weights_fingerprint(self.file, progress)])
            return fingerprint_of(["random", self.name, self.seed])
        if self.kind in ("timm", "hf"):
            files = [file_sha256(path, progress) for path in self._home().weight_files(self)]
            name = self.name if self.kind == "timm" else ""  # which reads the file in its way
            return fingerprint_of([self.kind, name, self.which, files])
        assert self.file is not None
        if self.kind in KINDS:
            if not self.file.is_file():
                raise IjepaError(
                    f"{no_file(self.file, 'file')}; `ijepa encoders` lists download locations."
                )
            return fingerprint_of([self.kind, "", self.which, [file_sha256(self.file, progress)]])
        if not self.file.exists():
            raise _unknown(self.text)
        arch = [self.arch] if self.kind == "published" else []
        return fingerprint_of([self.which, weights_fingerprint(self.file, progress), *arch])

    def load(self, device: "torch.device | None" = None) -> "Encoder":
        """Make the encoder, exactly or not at all, on the CPU by default."""
        encoder: Encoder = self._home().load(self)
        if self.image_px:
            encoder.resize(self.image_px)
        return encoder.to(device) if device else encoder

    def trainable(self) -> "Encoder":
        """Make the encoder on the CPU, for `Encoder.network` to be trained."""
        return self.load().checked_trainable()

    def refuse_context(self) -> None:
        """Refuse `--which context` for pixels and for files of one encoder."""
        if self.which == "context":
            raise IjepaError(f"{self.text} is one encoder; leave --which context out.")

    def _home(self) -> Any:  # noqa: ANN401  # a module
        name = KINDS[self.kind].home if self.kind in KINDS else "own"
        return importlib.import_module(f"ijepa.encoders.{name}")


def load_encoder(
    name: StrPath,
    *,
    which: str = "target",
    checkpoint: str = "last",
    image_px: int | Size | None = None,
    seed: int = 0,
    device: "str | torch.device" = "cpu",
    pixels: PixelStats | None = None,
) -> "Encoder":
    """Make an encoder from its name: an `nn.Module`, frozen, with `encode` and `transform`.

    Args:
        name: a run folder, a checkpoint file of a run, a published file (or
            `published:48x3x3@FILE`, where its shapes do not tell the heads), `random:RUN` (the
            random weights that the seed of that run draws), `random:ARCH[/PATCH][@PX]` such as
            `random:vit_small/16@224`, `pixels[/PATCH]`, or a kind of `ijepa encoders` such as
            `mae:FILE`.
        which: `target` or `context`, where there are two encoders.
        checkpoint: of a run folder: `last`, `best` (of the health checks) or one such as
            `epoch-0004`.
        image_px: another side, or (height, width), than the encoder's own; positions are
            interpolated.
        seed: of `random:ARCH`; a run has its own.
        device: where it computes, such as `cuda`, or `auto`, a GPU if there is one;
            `encoder.to(device)` moves it later.
        pixels: of `ijepa.open_shards(...).pixels`, for images that are not 8-bit RGB; see
            `Encoder.fit_channels`.

    Raises:
        IjepaError: no such encoder, device or side, or weights that do not load. Never a partly
            loaded model.
    """
    from ijepa.distributed import pick_device

    if which not in WHICH:
        raise IjepaError(f"which is {which!r}{did_you_mean(which, WHICH)}; give target or context.")
    if image_px is not None and min(height_width(image_px)) < 1:
        raise IjepaError(f"image_px is {image_px}; give a side of 1 pixel or more.")
    spec = EncoderSpec.parse(name, which=which, checkpoint=checkpoint, image_px=image_px, seed=seed)
    encoder = spec._replace(pixels=pixels).load(pick_device(str(device)))
    return encoder.fit_channels(pixels) if pixels else encoder


def checkpoint_path(path: Path) -> Path:
    """The checkpoint that a run folder or file names; an `IjepaError` for an unfinished run."""
    if not path.exists():
        raise _unknown(str(path))
    kind = MADE.get((read_record(path) or {}).get("stage", ""), "a folder")
    if path.is_file() and kind == "a folder":
        return path
    if not (path / LAST).is_file():
        begun = sibling(path, ".partial") / CHECKPOINTS
        hint = f"finish it, or name a file in {begun}" if begun.is_dir() else "name one"
        raise IjepaError(f"{path} is {kind}, no finished run of `ijepa pretrain`; {hint}.")
    return path / LAST


def _checkpoint_file(text: str, kind: str, run: Path | None, checkpoint: str) -> Path | None:
    """A checkpoint of a run folder by its name, without `.pt`; what is named if that is `last`."""
    if checkpoint == LAST.stem:
        return run
    folder = run / CHECKPOINTS if run and kind != "random" else None
    names = sorted(file.stem for file in folder.glob("*.pt")) if folder else []
    if not folder or checkpoint not in names:
        why = " Without labels no health check is the best." if checkpoint == BEST.stem else ""
        raise IjepaError(
            f"{text} has no checkpoint {checkpoint!r}{did_you_mean(checkpoint, names)}; there are "
            f"{', '.join(names) or 'none, so leave --checkpoint out'}.{why if names else ''}"
        )
    return folder / f"{checkpoint}.pt"


def _unknown(text: str) -> IjepaError:
    """There is no such run or file; with the name or kind nearest to a mistyped one."""
    _, colon, rest = text.partition(":")
    begun = sibling(Path(text), ".partial")
    if (begun / LAST).is_file():
        return IjepaError(
            f"{text} is not finished yet; finish it, or name {begun} for its newest state."
        )
    if colon:
        near = did_you_mean(text, [f"{one}:{rest}" for one in (*KINDS, "random", "published")])
    else:
        near = did_you_mean(Path(text).name, ["pixels", *names_in(Path(text).parent)])
    return IjepaError(
        f"There is no encoder {text!r}{near}; give a run folder, a checkpoint file, random:RUN, "
        f"random:ARCH such as random:vit_small/16@224, pixels, or another kind of `ijepa encoders`."
    )


def weights_fingerprint(path: Path, progress: Progress = silent) -> str:
    """A finished run is known by its record, time included; any other file by its bytes."""
    if path.is_dir() and read_record(path):
        return file_sha256(record_path(path))
    return file_sha256(checkpoint_path(path), progress)
