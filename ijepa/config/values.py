"""What configurations are made of: their base, and the kinds of values in them."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# Bounds keep a slip of the pen from filling memory or from never ending: each is far above any use.
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
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Interpolation = Literal["bilinear", "bicubic"]
Precision = Literal["auto", "fp32", "bf16"]  # auto: bf16 on a GPU, fp32 on a CPU

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


FileName = Annotated[str, AfterValidator(_file_name)]
AscendingRange = Annotated[Range, AfterValidator(_ascending)]
AscendingFractions = Annotated[tuple[Fraction, Fraction], AfterValidator(_ascending)]
AscendingNumbers = Annotated[tuple[Few, ...], Field(min_length=1), AfterValidator(_counting_up)]


class Config(BaseModel):
    """Base of all configurations and results: unknown keys are errors, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Config):
    """Base of what users set: every number is finite."""

    model_config = ConfigDict(allow_inf_nan=False)


def height_width(image_px: int | Size) -> Size:
    """(height, width) in pixels of a square named by its side, or of what is no square."""
    return (image_px, image_px) if isinstance(image_px, int) else image_px
