"""Files of weights from anywhere: read lazily, tensors only, nothing of theirs ever run.

PyTorch's zip files and safetensors are mapped, so that a tensor takes memory when it is used; the
older PyTorch files are read whole. What a file claims is held against its size before it is used.
"""

import argparse
import io
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ijepa.errors import IjepaError
from ijepa.stores.stage import whole_file

PICKLE_LIMIT_BYTES = 64 * 2**20  # of names, shapes and settings; ViT-g with its optimizer has 1 MB
SHARED_LIMIT = 8  # a file's tensors may share storage, but be no more than so many times its size
# `args` of many released checkpoints: a class of attributes, without code.
HARMLESS: list[Any] = [argparse.Namespace]
# Torch lets these through, and a few bytes of a pickle can make gigabytes with them.
INFLATING = {"builtins.bytearray", "_codecs.encode"}
ZIP, ZIP_EMPTY = b"PK\x03\x04", b"PK\x05\x06"
BLOCK_BYTES = 2**20
LEGACY_PICKLES = 5  # magic number, protocol, system, the object, names of its storages
UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    MemoryError,
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,  # torch.load trusts a name that ends in .safetensors
)


def write_weights(path: Path, body: dict[str, Any]) -> None:
    """Write as PyTorch does, atomically; on a full disk the old file stays.

    Raises:
        OSError: the disk is full or ailing.
    """
    with whole_file(path) as file:
        try:
            torch.save(body, file)
        except RuntimeError as error:
            # After a failed write torch still ends its zip, and tells of that failure alone.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file of PyTorch (zip, or older than 1.6) or of safetensors onto the CPU.

    What kind it is, is told by its first bytes, not by its name. Tensors of zip files and of
    safetensors are views of the mapped file: copy what must outlive a change of the file.

    Returns:
        What was saved: tensors by name, or a tree of dicts, lists, tensors and plain values.

    Raises:
        IjepaError: not there, cut short, claiming more than it holds, or in need of code to be
            read. Nothing in the file is executed, and memory stays within some times its size.
    """
    if not path.is_file():
        raise IjepaError(f"There is no file of weights {path}.")
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and start.endswith(b"{") and not start.startswith(ZIP):
        return _read_safetensors(path)
    return _read_torch(path, zipped=start[:4] in (ZIP, ZIP_EMPTY))


def safetensors_notes(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file; empty for any other file."""
    with path.open("rb") as file:
        if not file.read(9).endswith(b"{"):
            return {}
    with _opened_safetensors(path) as file:
        return dict(file.metadata() or {})


def _read_safetensors(path: Path) -> dict[str, Any]:
    with _opened_safetensors(path) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except UNREADABLE as error:
            raise _broken(path, error) from error


def _opened_safetensors(path: Path) -> Any:  # noqa: ANN401  # safetensors has no types
    try:
        return safe_open(path, framework="pt", device="cpu")
    except UNREADABLE as error:
        raise _broken(path, error) from error


def _read_torch(path: Path, *, zipped: bool) -> dict[str, Any]:
    try:
        names = _globals_of_zip(path) if zipped else _globals_of_legacy(path)
        _refuse_globals(path, names & INFLATING)
        with torch.serialization.safe_globals(HARMLESS):
            if zipped:
                unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
                _refuse_globals(path, set(unsafe))
            body = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UNREADABLE as error:
        refused = re.findall(r"GLOBAL (\S+) (?:was not|whose)", str(error))
        _refuse_globals(path, set(refused))
        raise _broken(path, error) from error
    if not isinstance(body, dict):
        raise IjepaError(f"{path} holds a {type(body).__name__}, not weights by name.")
    _refuse_inflated(path, body)
    return dict(body)


def _globals_of_zip(path: Path) -> set[str]:
    """What its pickle names; refuses members that are compressed or larger than the file."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
        claimed, held = sum(member.file_size for member in members), path.stat().st_size
        if packed or claimed > held:
            raise ValueError(
                f"its member {packed[0]} is compressed, which PyTorch never does"
                if packed
                else f"it claims {claimed:,} bytes and has {held:,}"
            )
        pickles = [m for m in members if m.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip archive, but not one of torch.save")
        _refuse_long(pickles[0].file_size)
        _check_checksums(archive, members)
        return set(_globals_in(io.BytesIO(archive.read(pickles[0]))))


def _check_checksums(archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo]) -> None:
    """Read the members once, at gigabytes a second and without keeping them.

    PyTorch itself looks at no checksum of a file that it maps; some of its files have none, but 0.
    """
    for member in members:
        try:
            with archive.open(member) as file:
                while member.CRC and file.read(BLOCK_BYTES):
                    pass
        except zipfile.BadZipFile as error:
            raise ValueError(f"its member {member.filename} is damaged") from error


def _globals_of_legacy(path: Path) -> set[str]:
    with path.open("rb") as file:
        names = {name for _ in range(LEGACY_PICKLES) for name in _globals_in(file)}
        _refuse_long(file.tell())
        return names


def _refuse_long(size: int) -> None:
    if size > PICKLE_LIMIT_BYTES:
        raise ValueError(f"its pickle has {size:,} bytes beside the tensors")


def _globals_in(file: IO[bytes]) -> Iterator[str]:
    """Every class and function that one pickle names, found without running it."""
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")


def _refuse_globals(path: Path, names: set[str]) -> None:
    if names:
        raise IjepaError(
            f"{path} holds more than tensors: to read it, {', '.join(sorted(names)[:3])} "
            f"would have to be run, which could be anything. If you trust who made it, load it "
            f"yourself with torch.load(..., weights_only=False) and torch.save its weights alone."
        )


def _refuse_inflated(path: Path, body: object) -> None:
    """Tensors that claim more values than their storage or the file has."""
    held, total = path.stat().st_size, 0
    for tensor in tensors_in(body):
        is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.is_quantized or tensor.is_nested:
            raise IjepaError(f"{path} holds a tensor that is not a plain one ({tensor.layout}).")
        stored = tensor.untyped_storage().nbytes()
        total += tensor.nbytes
        if tensor.nbytes > stored or stored > held or total > SHARED_LIMIT * held:
            raise IjepaError(
                f"{path} claims a tensor of {tuple(tensor.shape)}, more than it holds in "
                f"{held:,} bytes; it is broken, or made to do harm."
            )


def tensors_in(body: object) -> Iterator[Tensor]:
    """All tensors of a tree, each once, also those of objects that stand in it twice."""
    seen: set[int] = set()
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, Mapping):
                waiting.extend(value.values())
            elif isinstance(value, list | tuple | set):
                waiting.extend(value)
            elif isinstance(value, argparse.Namespace):
                waiting.extend(vars(value).values())


def _broken(path: Path, error: BaseException) -> IjepaError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, zipfile.BadZipFile):
        reason = f"cut short: a zip archive without its end; {reason}"
    return IjepaError(f"{path} is no readable file of weights ({reason}); get it again.")
