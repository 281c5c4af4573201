"""Checkpoints of ours, and files of weights from anywhere: tensors only, no code of theirs run.

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
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ijepa.config import PretrainConfig, StrPath
from ijepa.errors import IjepaError
from ijepa.files import whole_file

SCHEMA = 2  # of our checkpoints
PICKLE_LIMIT_BYTES = 64 * 2**20  # of names, shapes and settings; ViT-g with its optimizer has 1 MB
SHARED_LIMIT = 8  # a file's tensors may share storage, but be no more than so many times its size
# Torch lets these through, and a few bytes of a pickle can make gigabytes with them.
INFLATING = {"builtins.bytearray", "_codecs.encode"}
BYTES_OF_TEXT = "_codecs encode"  # as pickletools writes it
LONGEST_PATH = 4096  # characters
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
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


class _Kind:
    """In place of `numpy.dtype` in a file: the kinds of plain numbers, and no other."""

    def __init__(self, name: str, *_: object) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}", name):
            raise ValueError(f"a NumPy value of type {name:.20}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder()


def _number(kind: _Kind, content: bytes) -> Any:  # noqa: ANN401  # bool, int, float or complex
    """In place of NumPy's function of that purpose: a plain number."""
    return np.frombuffer(content, kind.dtype)[0].item()


def _path(*parts: str) -> PurePosixPath:
    """In place of the classes of pathlib."""
    if sum(map(len, parts)) > LONGEST_PATH:
        raise ValueError("a path of more than 4,096 characters")
    return PurePosixPath(*parts)


# Beside tensors, many released checkpoints hold settings of these types; none of them runs code.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (_Kind, "numpy.dtype"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(
        (_path, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath",
                     "PureWindowsPath")
    ),
]  # fmt: skip


class Checkpoint(NamedTuple):
    """State after `step` optimizer steps.

    Attributes:
        step: how many steps are done.
        config: of the run.
        model: state dict with the parts `encoder.`, `predictor.` and `target_encoder.`.
        optimizer: state dict, by the names of the parameters; empty where weights alone were kept,
            from which no run goes on.
        facts: small values the run keeps, such as the length of its metrics file.
    """

    step: int
    config: PretrainConfig
    model: dict[str, Any]
    optimizer: dict[str, Any]
    facts: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; on a full disk the old file stays."""
    save_state(path, checkpoint._asdict() | {"config": checkpoint.config.model_dump(mode="json")})


def load_checkpoint(path: StrPath) -> Checkpoint:
    """Read a checkpoint onto the CPU; tensors only, no pickled code.

    Raises:
        IjepaError: not there, cut short, or not one of ours. Never anything but the whole state.
    """
    path = Path(path)
    body = load_state(path)
    return checkpoint_of(path, {"schema": SCHEMA, **body})


def checkpoint_of(path: Path, body: dict[str, Any]) -> Checkpoint:
    """What was read from `path` as a checkpoint; raises as `load_checkpoint`."""
    body = _state_in(path, body)
    try:
        config = PretrainConfig.model_validate(body.pop("config"))
        return Checkpoint(config=config, **body)
    except ValidationError as error:
        raise IjepaError(
            f"{path} holds a configuration that this version does not know."
        ) from error
    except (KeyError, TypeError) as error:
        raise IjepaError(f"{path} lacks a part of an ijepa checkpoint ({error}).") from error


def save_state(path: Path, body: dict[str, Any]) -> None:
    """Write tensors and plain values atomically; on a full disk the old file stays."""
    write_weights(path, {"schema": SCHEMA, **body})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote onto the CPU; tensors and plain values only, no pickled code.

    Raises:
        IjepaError: not there, cut short, or not one of ours.
    """
    if not path.is_file():
        raise IjepaError(f"There is no checkpoint {path}.")
    try:
        return _state_in(path, read_weights(path))
    except IjepaError as error:
        raise IjepaError(f"{error} Restore it, or use --force.") from error


def _state_in(path: Path, body: dict[str, Any]) -> dict[str, Any]:
    if body.get("schema") != SCHEMA:
        raise IjepaError(f"{path} is not an ijepa checkpoint of schema {SCHEMA}.")
    return {name: value for name, value in body.items() if name != "schema"}


def load_weights(module: nn.Module, weights: dict[str, Any], source: object) -> None:
    """Load a state dict exactly, or not at all; raises as `check_weights`."""
    check_weights(module, weights, source)
    module.load_state_dict(weights)


def check_weights(module: nn.Module, weights: dict[str, Any], source: object) -> None:
    """Is this a state dict of just that module?

    Raises:
        IjepaError: naming the first missing, unexpected or differently shaped keys.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        missing = [f"{name} missing" for name in expected.keys() - found.keys()]
        extra = [f"{name} unexpected" for name in found.keys() - expected.keys()]
        shapes = [
            f"{name} is {found[name]}, expected {expected[name]}"
            for name in expected.keys() & found.keys()
            if expected[name] != found[name]
        ]
        refuse_faults(source, sorted(shapes) + sorted(missing) + sorted(extra))


def refuse_faults(source: object, faults: list[str]) -> None:
    """Name the first faults of weights, if there are any.

    Raises:
        IjepaError: there are.
    """
    if faults:
        raise IjepaError(
            f"{source} is of another architecture: {'; '.join(faults[:3])}"
            f"{f' and {len(faults) - 3} more' if len(faults) > 3 else ''}."
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


def unwrapped(tree: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The same tree without what torch.compile and DataParallel put before names of weights.

    Args:
        tree: what `read_weights` returns, or a part of it.
        source: its file, for messages.

    Raises:
        IjepaError: two names become one.
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        bare = WRAPPERS.sub("", name) if isinstance(name, str) else name
        if bare in found:
            raise IjepaError(f"{source} holds {bare} twice, with a prefix and without; remove one.")
        found[bare] = unwrapped(value, source) if isinstance(value, Mapping) else value
    return found


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
    """Every class and function that one pickle names, found without running it.

    `_codecs.encode` is not among them where it only makes bytes of a latin-1 text, as for NumPy's
    scalars.
    """
    steps: list[tuple[str, Any]] = []  # without notes in the memo
    memo: dict[Any, tuple[str, Any]] = {}
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST") and argument != BYTES_OF_TEXT:
            name = str(argument).replace(" ", ".")
            yield re.sub("^__builtin__[.]", "builtins.", name)  # as torch does
        if code.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = steps[-1]
        elif code.name in ("BINGET", "LONG_BINGET"):
            steps.append(memo.get(argument, ("", None)))
        else:
            steps.append((code.name, argument))
    for place, step in enumerate(steps):
        if BYTES_OF_TEXT in step and not _is_bytes_of_text(steps[place : place + 5]):
            yield BYTES_OF_TEXT.replace(" ", ".")


def _is_bytes_of_text(steps: list[tuple[str, Any]]) -> bool:
    """Do these steps call `_codecs.encode` on a text that stands there, and with latin-1?"""
    names = [name for name, _ in steps]
    return (
        names == ["GLOBAL", "BINUNICODE", "BINUNICODE", "TUPLE2", "REDUCE"]
        and steps[2][1] == "latin1"
    )


def _refuse_globals(path: Path, names: set[str]) -> None:
    if names:
        raise IjepaError(
            f"{path} holds more than tensors: to read it, {', '.join(sorted(names)[:3])} "
            f"would have to be run, which could be anything. Ask for a file of tensors alone, such "
            f"as safetensors, or torch.save the state dict alone where the file was made."
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
