"""What makes a CPU wait for its GPU, with the line of the library where it happens."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import ijepa

from .tensors import READ_VALUE, OperationMode

LIBRARY = Path(ijepa.__file__).parent
COPIES = ("aten::_to_copy", "aten::copy_")
SIZED_BY_VALUES = ("aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim")


class Finding(NamedTuple):
    """One thing for which the CPU waits.

    Attributes:
        what: kind of the fault, and bytes where some are copied.
        where: `ijepa/jepa/step.py:93`, the innermost line of the library.
    """

    what: str
    where: str


def lint(work: Callable[[], object]) -> list[Finding]:
    """Call `work` inside `fake_tensors`, and name all that blocks there.

    Blocking are copies between CPU and GPU that are not `non_blocking`, or that come from memory
    that is not pinned; values that are read from the GPU; results whose size depends on values on
    the GPU.
    """
    with _Linter() as linter:
        work()
    return linter.findings


class _Linter(OperationMode):
    def __init__(self) -> None:
        super().__init__()
        self.findings: list[Finding] = []

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func._schema.name
        what = None
        if name in COPIES:
            what = _copy_fault(name, args, kwargs)
        elif any(_is_on_gpu(leaf) for leaf in tree_leaves(args)):
            what = _gpu_fault(name, args)
        if what:
            self.findings.append(Finding(what, _line_of_library()))
        return func(*args, **kwargs)


def _copy_fault(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if name == "aten::_to_copy":
        source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
        is_async = bool(kwargs.get("non_blocking"))
    else:
        source, target = args[1], args[0].device
        is_async = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    if "cuda" not in (source.device.type, target.type) or source.device.type == target.type:
        return None
    if is_async and (source.is_cuda or source.is_pinned()):
        return None
    num_bytes = source.numel() * source.element_size()
    kind = "copy from memory that is not pinned" if is_async else "blocking copy"
    return f"{kind} of {num_bytes} bytes, {source.device.type} to {target.type}"


def _gpu_fault(name: str, args: tuple[Any, ...]) -> str | None:
    if name == READ_VALUE:
        return "value read from the GPU"
    by_mask = name == "aten::index" and any(
        isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8)
        for leaf in tree_leaves(args[1])
    )
    if by_mask or name in SIZED_BY_VALUES:
        return f"size that depends on values ({name.removeprefix('aten::')})"
    return None


def _is_on_gpu(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_cuda


def _line_of_library() -> str:
    frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(LIBRARY)]
    if not frames:
        return "outside of the library"
    return f"{Path(frames[-1].filename).relative_to(LIBRARY.parent)}:{frames[-1].lineno}"
