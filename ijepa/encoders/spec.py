"""The name of an encoder: parsed once, told apart by its files, loaded by the module of its kind.

Nothing here needs torch until weights are loaded: a stage whose output is there does not wait.
"""

import importlib
import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import yaml

from ijepa.config import Config, ExtractConfig, FinetuneConfig, Size, StrPath
from ijepa.errors import IjepaError
from ijepa.files import file_sha256, fingerprint_of
from ijepa.paper import TABLES
from ijepa.provenance import Provenance
from ijepa.records import read_record, record_path

if TYPE_CHECKING:
    import torch

    from ijepa.encoders.base import Encoder

LAST = Path("checkpoints") / "last.pt"


class Kind(Config):
    """What stands before the colon of an encoder's name; `catalogue.yaml` explains the fields."""

    takes: str
    home: str
    what: str
    pooling: str
    source: str
    licence: str
    licence_read: str
    method: str | None = None
    target: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    part: str = ""
    others: tuple[str, ...] = ()


_BODY: dict[str, Any] = yaml.safe_load(
    resources.files("ijepa.encoders").joinpath("catalogue.yaml").read_text()
)
KINDS = {name: Kind(**fields) for name, fields in _BODY["kinds"].items()}
# By the names of files, of timm and of the hub.
RELEASED = {
    space: {
        name: Provenance(**dict(zip(("method", "arch", "epochs", "data"), row, strict=True)))
        for name, row in models.items()
    }
    for space, models in _BODY["released"].items()
}


class EncoderSpec(NamedTuple):
    """An encoder, as `--encoder` names it.

    Attributes:
        text: as the user typed it.
        kind: `run`, `published`, `random`, `pixels`, or a key of `KINDS`.
        name: of a model of timm or the hub, or `ARCH[/PATCH][@PX]` of random weights.
        file: file or folder of weights; None where `name` says all.
        arch: of weights whose shapes do not tell it.
        which: `target` or `context`, where there are two.
        image_px: another side, or (height, width), than the encoder's own.
        seed: of random weights without a run.
    """

    text: str
    kind: str
    name: str = ""
    file: Path | None = None
    arch: str | None = None
    which: str = "target"
    image_px: int | Size | None = None
    seed: int = 0

    @classmethod
    def parse(
        cls,
        text: StrPath,
        *,
        which: str = "target",
        image_px: int | Size | None = None,
        seed: int = 0,
    ) -> Self:
        """Take a name apart; files are not opened yet.

        Raises:
            IjepaError: a file is named by half.
        """
        text = os.fspath(text)
        kind, colon, rest = text.partition(":")
        name, file, arch = rest, None, None
        if text == "pixels":
            kind = "pixels"
        elif kind == "timm":
            name, at, path = rest.partition("@")
            if at and name and not path:
                raise IjepaError(f"timm:{name}@ names no file; it is timm:NAME@FILE.")
            file = Path(path) if at else None
        elif kind in KINDS:
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
        return cls(text, kind, name, file, arch, which, image_px, seed)

    @classmethod
    def of(cls, config: ExtractConfig | FinetuneConfig) -> Self:
        """The encoder of a stage; raises as `parse`."""
        return cls.parse(
            config.encoder, which=config.which, image_px=config.image_px, seed=config.seed
        )

    def fingerprint(self) -> str:
        """Equal for two names of the same frozen encoder, different for different weights.

        Raises:
            IjepaError: no such encoder.
        """
        if self.kind == "pixels":
            return fingerprint_of("pixels")
        if self.kind == "random":
            if self.file:
                return fingerprint_of(["initial", weights_fingerprint(self.file)])
            return fingerprint_of(["random", self.name, self.seed])
        if self.kind in KINDS:
            files = [file_sha256(path) for path in self._files()]
            name = self.name if self.kind == "timm" else ""  # which reads the file in its way
            return fingerprint_of([self.kind, name, self.which, files])
        assert self.file is not None
        if not self.file.exists():
            raise IjepaError(
                f"There is no encoder {self.text!r}; give a run folder, a checkpoint file, "
                f"random:RUN, random:ARCH such as random:vit_small/16@224, pixels, or another kind "
                f"of `ijepa encoders`."
            )
        arch = [self.arch] if self.kind == "published" else []
        return fingerprint_of([self.which, weights_fingerprint(self.file), *arch])

    def load(self, device: "torch.device | None" = None) -> "Encoder":
        """Make the encoder, on the CPU by default.

        Raises:
            IjepaError: no such encoder, or weights that do not load. Never a partly loaded model.
        """
        encoder: Encoder = self._home().load(self)
        return encoder.to(device) if device else encoder

    def trainable(self) -> "Encoder":
        """Make the encoder on the CPU, for `Encoder.network` to be trained; raises as `load`."""
        home = self._home()
        encoder: Encoder = getattr(home, "load_trainable", home.load)(self)
        return encoder.checked_trainable()

    def one_encoder(self) -> None:
        """Refuse `--which context` for files of one encoder."""
        if self.which == "context":
            raise IjepaError(f"{self.text} holds one encoder; leave --which context out.")

    def _home(self) -> Any:  # noqa: ANN401  # a module
        name = KINDS[self.kind].home if self.kind in KINDS else "own"
        return importlib.import_module(f"ijepa.encoders.{name}")

    def _files(self) -> list[Path]:
        """What decides what an encoder of others is."""
        if KINDS[self.kind].home != "baselines":
            files: list[Path] = self._home().weight_files(self)
            return files
        assert self.file is not None
        if not self.file.is_file():
            raise IjepaError(
                f"There is no file {self.name or self.text}; `ijepa encoders` says where from."
            )
        return [self.file]


def load_encoder(
    name: StrPath,
    *,
    which: str = "target",
    image_px: int | Size | None = None,
    seed: int = 0,
    device: "torch.device | None" = None,
) -> "Encoder":
    """Make an encoder from its name.

    Args:
        name: a run folder, a checkpoint file of a run, a published file (or
            `published:48x3x3@FILE`, where its shapes do not tell the heads), `random:RUN` (the
            initial weights of that run), `random:ARCH[/PATCH][@PX]` such as
            `random:vit_small/16@224`, `pixels`, or a kind of `ijepa encoders` such as `mae:FILE`.
        which: `target` or `context`, where there are two encoders.
        image_px: another side, or (height, width), than the encoder's own; positions are
            interpolated.
        seed: of `random:ARCH`; a run has its own.
        device: where it computes; the CPU by default.

    Raises:
        IjepaError: no such encoder, or weights that do not load. Never a partly loaded model.
    """
    return EncoderSpec.parse(name, which=which, image_px=image_px, seed=seed).load(device)


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


def weights_fingerprint(path: Path) -> str:
    """A finished run is known by its record, time included; any other file by its bytes.

    Raises:
        IjepaError: a folder that holds no weights.
    """
    if path.is_dir() and read_record(path):
        return file_sha256(record_path(path))
    return file_sha256(checkpoint_path(path))


class PaperRow(Config):
    """A row of one of the paper's tables of methods."""

    table: int
    arch: str
    epochs: int | None
    values: dict[str, float]


class Entry(Config):
    """One line of the catalogue.

    Attributes:
        encoder: what `--encoder` takes.
        what: one line for people; likewise `pooling`, `source` and `licence` of the weights, and
            `licence_read`, where it is stated.
        method: as the paper's tables have it.
        paper: the rows of the paper that such an encoder stands for.
    """

    encoder: str
    what: str
    pooling: str
    source: str = ""
    licence: str = ""
    licence_read: str = ""
    method: str | None = None
    paper: tuple[PaperRow, ...] = ()


class Catalogue(Config):
    """All that `--encoder` takes."""

    encoders: tuple[Entry, ...]


def catalogue() -> Catalogue:
    """All that `--encoder` takes, our own first."""
    entries = []
    for name, what in _BODY["own"].items():
        method = "I-JEPA" if name == "RUN or FILE" else None
        pooling = "none" if name == "pixels" else "average"
        entries.append(Entry(encoder=name, what=what, pooling=pooling, method=method))
    shown = {"what", "pooling", "source", "licence", "licence_read", "method"}
    for name, kind in KINDS.items():
        entries.append(Entry(encoder=f"{name}:{kind.takes}", **kind.model_dump(include=shown)))
    rows = [entry.model_copy(update={"paper": paper_rows(entry.method)}) for entry in entries]
    return Catalogue(encoders=tuple(rows))


def paper_rows(method: str | None) -> tuple[PaperRow, ...]:
    """Rows of the paper's tables that are about a method; ablations are left out."""
    return tuple(
        PaperRow(
            table=table.number,
            arch=row.arch,
            epochs=row.epochs,
            values={c.task: v for c, v in zip(table.columns, row.values, strict=True)},
        )
        for table in TABLES
        for row in table.rows
        if row.group and row.method == method
    )
