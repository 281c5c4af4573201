"""Checkpoints of ours, and files of weights from anywhere: tensors only, no code of theirs run.

PyTorch's zip files and safetensors are mapped, so that a tensor takes memory when it is used; the
older PyTorch files are read whole.
"""

import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ijepa.errors import IjepaError
from ijepa.files import no_file, whole_file

SCHEMA = 2  # of our checkpoints
FIELDS = {"step": int, "config": dict, "model": dict, "optimizer": dict, "facts": dict}
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
PATCHES, HIDDEN = "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
ZIP = b"PK\x03\x04"
UNREADABLE = (
    RuntimeError, EOFError, OSError, MemoryError, ValueError, TypeError, AssertionError,
    AttributeError, LookupError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile,
    SafetensorError,
)  # fmt: skip


class Ignored:
    """Takes the place of settings beside the weights of many released files; nobody reads them."""

    def __init__(self, *_: object) -> None:
        """Keep nothing."""

    def __setstate__(self, _: object) -> None:
        """Keep nothing."""


HARMLESS: list[Any] = [
    (Ignored, name)
    for name in (
        "argparse.Namespace",
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        *(
            f"{module}.{kind}Path"
            for module in ("pathlib", "pathlib._local")
            for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")
        ),
    )
]


def save_state(path: Path, body: dict[str, Any]) -> None:
    """Write tensors and plain values atomically; on a full disk the old file stays."""
    write_weights(path, {"schema": SCHEMA, **body})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote onto the CPU; tensors and plain values only, no pickled code."""
    if not path.is_file():
        raise IjepaError(f"There is no checkpoint {path}.")
    try:
        return state_of(path, read_weights(path))
    except IjepaError as error:
        raise IjepaError(f"{error} Restore it, or use --force.") from error


def state_of(path: Path, body: dict[str, Any]) -> dict[str, Any]:
    """What `read_weights` read from `path`, if `save_state` wrote it."""
    if body.get("schema") != SCHEMA:
        raise IjepaError(f"{path} is not an ijepa checkpoint of schema {SCHEMA}.")
    return {name: value for name, value in body.items() if name != "schema"}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """State of a training loop, as `checkpoint_of` has it."""
    return checkpoint_of(path, load_state(path))


def checkpoint_of(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The state that was read from `path`, if it is that of a training loop.

    Its `model` has the parts `encoder.`, `predictor.` and `target_encoder.` of a pretraining run;
    `optimizer` is empty where weights alone were kept, from which no run goes on.
    """
    lacking = [name for name, kind in FIELDS.items() if not isinstance(state.get(name), kind)]
    if lacking:
        raise IjepaError(f"{path} lacks a part of an ijepa checkpoint ({', '.join(lacking)}).")
    return state


def load_weights(
    module: nn.Module, weights: dict[str, Any], source: object, *, assign: bool = False
) -> None:
    """Load a state dict exactly, or not at all; by `assign` without a copy, from a mapped file."""
    check_weights(module, weights, source)
    module.load_state_dict(weights, assign=assign)


def check_weights(module: nn.Module, weights: dict[str, Any], source: object) -> None:
    """Raise an `IjepaError` with the first missing, unexpected or differently shaped keys."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(getattr(value, "shape", ())) for name, value in weights.items()}
    shapes = [
        f"{name} is {given[name]}, expected {expected[name]}"
        for name in expected.keys() & given.keys()
        if expected[name] != given[name]
    ]
    missing = [f"{name} missing" for name in expected.keys() - given.keys()]
    extra = [f"{name} unexpected" for name in given.keys() - expected.keys()]
    refuse_faults(source, sorted(shapes) + sorted(missing) + sorted(extra))


def refuse_faults(source: object, faults: list[str]) -> None:
    """Raise an `IjepaError` that names the first faults of weights, if there are any."""
    if faults:
        raise IjepaError(
            f"{source} is of another architecture: {'; '.join(faults[:3])}"
            f"{f' and {len(faults) - 3} more' if len(faults) > 3 else ''}."
        )


def write_weights(path: Path, body: dict[str, Any]) -> None:
    """Write as PyTorch does, atomically; on a full disk (an `OSError`) the old file stays."""
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

    Its content tells which it is, not its name. Tensors of zip files and of safetensors are views
    of the mapped file: copy what must outlive a change of the file.

    Returns:
        What was saved: tensors by name, or a tree of dicts, lists, tensors and plain values.

    Raises:
        IjepaError: not there, damaged, cut short, or in need of code to be read. Nothing in the
            file is executed.
    """
    if not path.is_file():
        raise IjepaError(f"{no_file(path, 'file of weights')}.")
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        body = _unpickled(path)
    except UNREADABLE as error:
        if refused := re.findall(r"GLOBAL (\S+) (?:was not|whose)", str(error)):
            raise IjepaError(
                f"{path} holds more than tensors: to read it, {refused[0]} would have to be run, "
                f"which could be anything. Ask for a file of tensors alone, such as safetensors, "
                f"or torch.save the state dict alone where the file was made."
            ) from error
        raise _broken(path, error) from error
    if not isinstance(body, dict):
        raise IjepaError(f"{path} holds a {type(body).__name__}, not weights by name.")
    return dict(body)


def safetensors_notes(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file; empty for any other file."""
    if not _is_safetensors(path):
        return {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except UNREADABLE as error:
        raise _broken(path, error) from error


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and values of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)  # not copied
    return digest.hexdigest()


class VitSize(NamedTuple):
    """What the shapes of a Vision Transformer tell; `side_patches` of the square of patches."""

    dim: int
    depth: int
    hidden: int
    patch_px: int
    side_patches: int


def vit_size(weights: dict[str, Tensor], source: str, prefix_tokens: int) -> VitSize:
    """Read a size off the shapes of weights, by timm's names.

    Args:
        weights: with a table of positions, or one of relative positions that all blocks share.
        source: for messages.
        prefix_tokens: that have positions before those of the patches.
    """
    patches, hidden = weights.get(PATCHES), weights.get(HIDDEN)
    table = weights.get("pos_embed", weights.get(SHARED_TABLE))
    wanted = {PATCHES: patches, HIDDEN: hidden, f"pos_embed or {SHARED_TABLE}": table}
    missing = [name for name, value in wanted.items() if value is None or value.ndim < 2]
    if patches is None or hidden is None or table is None or missing:
        raise IjepaError(
            f"{source} holds no Vision Transformer: {missing[0]} missing; it begins with "
            f"{', '.join(list(weights)[:3]) or 'nothing'}."
        )
    # The table is (1, tokens, dim), or ((2 side - 1)^2 + 3, heads) of relative positions.
    absolute = table.ndim == 3
    num_positions = table.shape[1] - prefix_tokens if absolute else table.shape[0] - 3
    root = isqrt(max(num_positions, 0))
    # Relative positions take the square of what their table takes: 64 patches a side are many.
    if root < 1 or root**2 != num_positions or (not absolute and root >= 2 * 64):
        raise IjepaError(
            f"{source} has positions of shape {tuple(table.shape)}; expected a square grid"
            f"{' and a class token' if prefix_tokens else ''}."
        )
    side = root if absolute else (root + 1) // 2
    depth = count_blocks(weights, "blocks")
    return VitSize(len(patches), depth, len(hidden), patches.shape[-1], side)


def count_blocks(weights: dict[str, Tensor], name: str) -> int:
    """How many different numbers follow `name` in the names of weights."""
    return len({found[0] for key in weights if (found := re.match(rf"{name}\.\d+\.", key))})


def unwrapped(tree: Mapping[str, Any], source: object) -> dict[str, Any]:
    """A tree of `read_weights` without what torch.compile and DataParallel put before names."""
    bare_tree: dict[str, Any] = {}
    for name, value in tree.items():
        bare = WRAPPERS.sub("", str(name))
        if bare in bare_tree:
            raise IjepaError(f"{source} holds {bare} twice, with a prefix and without; remove one.")
        bare_tree[bare] = unwrapped(value, source) if isinstance(value, Mapping) else value
    return bare_tree


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)  # the length of a header of JSON, and its first character
    return start[8:] == b"{" and not start.startswith(ZIP)


def _unpickled(path: Path) -> object:
    """What torch.load gives, after checks of what it lets through.

    Of a zip that it maps, torch takes compressed bytes for tensors and verifies no checksum: so
    each member is read once here, and compressed and damaged ones are refused.
    """
    with path.open("rb") as file:
        if zipped := file.read(len(ZIP)) == ZIP:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    if member.compress_type:
                        raise ValueError(f"its member {member.filename} is compressed")
                    with archive.open(member) as content:
                        while member.CRC and content.read(2**20):  # some have none, but 0
                            pass
    with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _broken(path: Path, error: BaseException) -> IjepaError:
    if path.suffix == ".onnx":
        return IjepaError(f"{path}: ONNX is for other programs; name what it was converted from.")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, pickle.UnpicklingError | LookupError):  # whose texts do not help a user
        reason = "it is damaged, or torch.save did not write it"
    return IjepaError(f"{path} is no readable file of weights ({reason}); get it again.")
