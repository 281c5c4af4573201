"""Weight files of others: tensors by name, read onto the CPU, and never any code."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ijepa.errors import IjepaError

HARMLESS: list[Any] = [
    argparse.Namespace
]  # the options that training scripts save beside the weights


def read_weights(path: Path) -> dict[str, Any]:
    """What a `.safetensors`, `.pth`, `.pt` or `.pth.tar` file holds, on the CPU, read lazily.

    Raises:
        IjepaError: not there, cut short, or a pickle that needs more than tensors and plain values.
    """
    if not path.is_file():
        raise IjepaError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            body = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (
        RuntimeError, EOFError, OSError, ValueError, LookupError, pickle.UnpicklingError,
        SafetensorError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IjepaError(f"{path} is no readable weight file ({reason}).") from error
    if not isinstance(body, dict):
        raise IjepaError(f"{path} holds a {type(body).__name__}, not weights by name.")
    return body
