"""What configurations are made of: their base, and the kinds of values in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from inspect import isclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from ijepa.errors import IjepaError
from ijepa.text import did_you_mean

C = TypeVar("C", bound=BaseModel)
SHOWN_FAULTS = 20
# What pydantic puts between the names of settings: which of several types it tried.
UNION_MEMBER = re.compile(r"multiblock|rasterized|block|random|int|str|constrained-\w+|.+\[.*\]")

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# Bounds, each far above any use: a typo must not fill memory, or run for ever.
MOST = 1e9  # of a real number
Real = Annotated[float, Field(ge=-MOST, le=MOST)]
Positive = Annotated[float, Field(gt=0.0, le=MOST)]
NotNegative = Annotated[float, Field(ge=0.0, le=MOST)]
Range = tuple[Positive, Positive]
Px = Annotated[int, Field(ge=1, le=2**14)]
Count = Annotated[int, Field(ge=1, le=2**31)]  # of what is not held in memory together
Few = Annotated[int, Field(ge=1, le=2**10)]
Batch = Annotated[int, Field(ge=1, le=2**20)]
Size = tuple[int, int]
StrPath = str | os.PathLike[str]  # what public functions take for a path
Rgb = tuple[Real, Real, Real]
Channels = Annotated[int, Field(ge=1, le=16)]
Reals = Annotated[tuple[Real, ...], Field(min_length=1, max_length=16)]  # one for each channel
Positives = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=16)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Interpolation = Literal["bilinear", "bicubic"]
Precision = Literal["auto", "fp32", "bf16"]  # auto: bf16 on a GPU that has it, else fp32

# What networks see of a pixel is its value divided by this; by the names of NumPy and torch.
LEVELS = {"uint8": 255.0, "uint16": 65535.0, "int16": 32767.0, "float16": 1.0, "float32": 1.0}

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"the first of {ends} must not exceed the second")
    return ends


def _counting_up(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if list(numbers) != sorted(set(numbers)):
        raise ValueError(f"the numbers of {numbers} must ascend, each named once")
    return numbers


def is_file_name(text: str) -> bool:
    """Can this be part of a path and of a command: no separator, no option, nothing of a shell?"""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", text) is not None


def _file_name(text: str) -> str:
    if not is_file_name(text):
        raise ValueError("a file's name in an index is letters, digits, '-', '_' and '.'")
    return text


def _as_text(name: object) -> object:
    return os.fspath(name) if isinstance(name, os.PathLike) else name


FileName = Annotated[str, AfterValidator(_file_name)]
EncoderName = Annotated[str, BeforeValidator(_as_text)]  # or the path of a run
AscendingRange = Annotated[Range, AfterValidator(_ascending)]
AscendingFractions = Annotated[tuple[Fraction, Fraction], AfterValidator(_ascending)]
AscendingNumbers = Annotated[tuple[Few, ...], Field(min_length=1), AfterValidator(_counting_up)]


class Config(BaseModel):
    """Base of all configurations and results: unknown keys are errors, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PixelStats(Config):
    """Channels, type, mean and standard deviation of images that are not 8-bit RGB.

    Mean and standard deviation are those of each channel, of pixels divided by `LEVELS` of `dtype`;
    each of the `images` that were measured counts alike, whatever its size.
    """

    channels: Channels
    dtype: Literal["uint8", "uint16", "int16", "float16", "float32"]
    mean: Reals
    std: Positives
    images: int


class Settings(Config):
    """Base of what users set: every number is finite, and the text below a field describes it."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _are_no_truths(cls, values: object) -> object:
        """Refuse `yes` for a number, which pydantic takes for 1."""
        for name, field in cls.model_fields.items():
            value = values.get(name) if isinstance(values, Mapping) else None
            listed = value if isinstance(value, list | tuple) else (value,)
            if field.annotation is not bool and any(isinstance(one, bool) for one in listed):
                raise ValueError(f"{name} should not be true or false")
        return values


class Runtime(Settings):
    """How to run, not what to compute: leaves every result as it is."""

    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto: a CUDA GPU if there is one, else Apple's, else the CPU."""
    workers: Annotated[int, Field(ge=0, le=2**12)] | None = None
    """Number of processes that decode images. Default: 2; with a GPU, all cores but 2."""
    checkpoint_seconds: Positive = 60.0
    """Seconds between two saves of the state, which is the most work that a kill can cost. Saves
    are rarer where they would take more than 2% of the time."""
    micro_batch: Batch | None = None
    """Images that a process computes at a time; gradients are summed. Fewer need less memory."""
    recompute: bool = False
    """Compute each block again in the backward pass, which needs less memory and more time."""
    compile: bool = False
    """Use torch.compile: starts slowly, then is faster on a GPU; slower on AMD CPUs."""
    cache: Literal["none", "decoded"] = "none"
    """decoded: keep all images decoded in the device's memory and crop them there, for small data.
    A pixel may differ by one level of 255."""
    track: Literal["none", "wandb", "trackio", "mlflow"] = "none"
    """Also log to wandb, trackio or mlflow, in RUN/tracking; online only if the tracker's own
    environment variables say so."""
    pictures: bool = True
    """Pictures of masks, components and neighbours go into TensorBoard at health checks, unless
    this is given."""
    force: bool = False
    """Rebuild the output even if it is up to date, and replace one that ijepa did not make."""
    replace: bool = False
    """Rebuild an existing run if its settings changed; without it such a run is kept."""
    dry_run: bool = False
    """Say whether the output is up to date or would be made, and why; write nothing."""
    command: str = ""
    """What the user typed, written beside the result."""
    about: str = ""
    """What is about to run, in words; logged when it begins, and not if the output is cached."""


RUNTIME = Runtime()
CPU_WORKERS = 2  # by default, where no GPU waits for images


class Architecture(NamedTuple):
    """Size of a Vision Transformer; `mlp_ratio` times `dim` is the hidden width."""

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


ARCHITECTURES = {
    "vit_tiny": Architecture(192, 12, 3),
    "vit_small": Architecture(384, 12, 6),
    "vit_base": Architecture(768, 12, 12),
    "vit_large": Architecture(1024, 24, 16),
    "vit_huge": Architecture(1280, 32, 16),
    "vit_giant": Architecture(1408, 40, 16, 48 / 11),
}

MOST_DIM, MOST_DEPTH = 16_384, 1_024  # several times the largest Vision Transformers


def architecture(name: str) -> Architecture:
    """Look up a name of `ARCHITECTURES`, or read `DIMxDEPTHxHEADS` such as `128x4x4`."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    numbers = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", name, re.ASCII)
    if not numbers:
        known = ", ".join(ARCHITECTURES)
        raise IjepaError(
            f"There is no architecture {name!r:.80}{did_you_mean(name, ARCHITECTURES)}; use one of "
            f"{known}, or DIMxDEPTHxHEADS such as 128x4x4."
        )
    dim, depth, heads = (int(number) for number in numbers.groups())
    is_whole = min(dim, depth, heads) > 0 and dim % heads == dim % 4 == 0
    if not is_whole or dim > MOST_DIM or depth > MOST_DEPTH:
        raise IjepaError(
            f"Architecture {name}: the width must be a multiple of 4 and of the heads, and at most "
            f"{MOST_DIM:,}; the depth at most {MOST_DEPTH:,}."
        )
    return Architecture(dim, depth, heads)


def height_width(image_px: int | Size) -> Size:
    """(height, width) in pixels of a square named by its side, or of what is no square."""
    return (image_px, image_px) if isinstance(image_px, int) else image_px


def flat(body: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name: `{"masks": {"kind": "block"}}` gives `{"masks.kind": "block"}`."""
    leaves: dict[str, Any] = {}
    for name, value in body.items():
        dotted = f"{prefix}{name}"
        leaves |= flat(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value}
    return leaves


def _names(kind: type[BaseModel], group: str = "") -> Iterator[str]:
    """The dotted name of every setting."""
    for name, field in kind.model_fields.items():
        yield f"{group}{name}"
        for inner in (field.annotation, *get_args(field.annotation)):
            if isclass(inner) and issubclass(inner, BaseModel):
                yield from _names(inner, f"{group}{name}.")


def validated(
    kind: type[C], body: object, source: str, options: Mapping[str, str] | None = None
) -> C:
    """Check a mapping against a configuration; all faults of `source` are one error.

    `options` are the command's options by setting, for those that were typed.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        faults: dict[str, ErrorDetails] = {}  # one a setting
        for fault in error.errors():
            parts = [str(part) for part in fault["loc"]]
            where = ".".join(part for part in parts if not UNION_MEMBER.fullmatch(part))
            if where not in faults or faults[where]["type"].endswith("_type"):  # not what was meant
                faults[where] = fault
        shown = [*faults.items()][:SHOWN_FAULTS]
        said = [_fault(kind, where, fault, options or {}) for where, fault in shown]
        if more := len(faults) - len(said):
            said.append(f"and {more:,} more")
        raise IjepaError(f"{source}: {'; '.join(said)}.") from error


def _fault(
    kind: type[BaseModel], where: str, fault: ErrorDetails, options: Mapping[str, str]
) -> str:
    if fault["type"] == "extra_forbidden":
        names = [*_names(kind)]
        if where in names:  # of masks of another kind
            return f"{where} is a setting of another {where.rpartition('.')[0]}.kind"
        group, _, last = where.rpartition(".")
        every = {name.rpartition(".")[2]: name for name in names}
        own = {short: f"{group}.{short}" for short in every if f"{group}.{short}" in names}
        near = get_close_matches(last, own, 1, cutoff=0.5) or get_close_matches(last, every, 1)
        hint = f" (did you mean {(own | every)[near[0]]!r}?)" if near else ""
        return f"{where} is not a known setting{hint}"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    first, given = where.partition(".")[0], fault["input"]
    if fault["type"] == "tuple_type":
        like = given if isinstance(given, str) else f"{given},{given}"
        message = f"write a list, such as {where}=[{like}]"
    if fault["type"] == "int_type" and isinstance(given, list) and len(given) == 1:
        message = f"write the number alone, {where}={given[0]}"
    if first in options:
        words = " ".join(map(str, given if isinstance(given, list | tuple) else [given]))
        return f"{options[first]} {words:.200}: {message}"
    if isinstance(given, dict):  # of a group, whose settings the message may name itself
        return message if message.startswith(where) else f"{where}: {message}"
    return f"{where} = {given!r:.200}: {message}" if where else message
