"""Which kernels compute: one context, entered where a stage starts computing.

On a CPU torch's Linear layers run on MKL in fp32; oneDNN, which torch brings as well, is up to
twice as fast on some AMD CPUs and slower on others. So both are timed on the run's own shapes.
On a GPU cuDNN's attention builds a plan for every new shape, which takes a second; masks whose
lengths vary bring hundreds of shapes, so it is switched off for them.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils.checkpoint import checkpoint

from ijepa.distributed import cpu_name
from ijepa.errors import IjepaError
from ijepa.files import write_json

LinearKernel = Literal["torch", "onednn"]

SWITCH = "IJEPA_CPU_LINEAR"  # environment variable: torch, onednn, or auto
CLEARLY_FASTER = 1.3  # by how much oneDNN must win, so that noise never decides
TIMED_FLOPS = 1e9  # of one call at most, so that timing takes a quarter of a second
TIMED_ROUNDS = 5
CACHE_SIZES = "LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # torch's and oneDNN's own
KEPT_KERNELS = "64"  # in place of 1,024, half a MB each: every length of a mask has its own


@contextlib.contextmanager
def computing(
    device: torch.device, *, linear: LinearKernel = "torch", shapes_vary: bool = False
) -> Iterator[None]:
    """Compute on `device` with the kernels that suit it; everything is put back at the end.

    Covers backward passes inside, and what `recompute` computes again there. What torch.compile
    compiles keeps its compiler's kernels.

    Args:
        device: a CUDA device becomes the current one.
        linear: what multiplies fp32 matrices of `torch.nn.functional.linear` on a CPU, see
            `pick_linear`. `onednn` has no second derivatives, nor those of `torch.func`.
        shapes_vary: whether attention meets new sequence lengths all the time.
    """
    with contextlib.ExitStack() as undo:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]  # torch's
            undo.callback(torch.backends.cuda.enable_cudnn_sdp, before)
            torch.backends.cuda.enable_cudnn_sdp(before and not shapes_vary)
        elif linear == "onednn":
            undo.enter_context(_OneDnnLinear())
        yield


def recompute(function: Callable[..., Tensor], *inputs: Any) -> Tensor:  # noqa: ANN401  # handed on as it is
    """Call a function, keep only its inputs, and call it again with equal kernels when needed."""
    inside = isinstance(_get_current_function_mode(), _OneDnnLinear)  # type: ignore[no-untyped-call]  # torch's

    def contexts() -> tuple[contextlib.AbstractContextManager[object], Any]:
        again = _OneDnnLinear() if inside else contextlib.nullcontext()
        return contextlib.nullcontext(), again  # torch leaves a mode for its backward pass

    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)
    return result


def pick_linear(device: torch.device, rows: int, dim: int) -> LinearKernel:
    """The faster library for the Linear layers of a Transformer on a CPU, found by timing both.

    The choice is kept in `known_file`: both round differently, and the same work on the same
    machine must always take the same library. The environment variable `IJEPA_CPU_LINEAR`
    (`torch`, `onednn`) decides instead where it is set.

    Args:
        device: where the networks compute; on anything but a CPU there is no choice.
        rows: tokens of a batch.
        dim: width of the network.
    """
    asked = os.environ.get(SWITCH, "auto") or "auto"
    if asked not in ("auto", "torch", "onednn"):
        raise IjepaError(f"{SWITCH} is {asked!r}; set it to auto, torch or onednn.")
    # No public name says that oneDNN is there; this one torch's own compiler uses.
    has_onednn = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if asked == "onednn" and not has_onednn:
        raise IjepaError(f"{SWITCH} is onednn, but this build of torch has no oneDNN.")
    if asked == "torch" or device.type != "cpu" or not has_onednn:
        return "torch"
    if asked == "onednn":
        return "onednn"
    most_rows = max(1, int(TIMED_FLOPS / (3 * 2 * 4 * dim**2)))
    return _known_or_timed(min(rows, most_rows), dim, torch.get_num_threads())


def known_file() -> Path:
    """Where the choices of this machine are kept: JSON, made anew if it is deleted."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "ijepa" / "cpu-linear.json"


@cache
def _known_or_timed(rows: int, dim: int, threads: int) -> LinearKernel:
    path, known = known_file(), {}
    name = f"{cpu_name()}, {threads} threads, torch {torch.__version__}: {rows} x {dim}"
    with contextlib.suppress(OSError, TypeError, ValueError):  # none yet, or not one of ours
        known = dict(json.loads(path.read_text()))
    if known.get(name) not in ("torch", "onednn"):
        known[name] = _timed(rows, dim)
        with contextlib.suppress(OSError):  # nowhere to keep it: it is timed again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    found: LinearKernel = known[name]
    return found


def _timed(rows: int, dim: int) -> LinearKernel:
    """The faster one for a Transformer's widest layer, by the best time forward and backward."""
    weight, bias = torch.full((4 * dim, dim), 0.01), torch.zeros(4 * dim)
    inputs = torch.full((rows, dim), 0.5)
    for tensor in (weight, bias, inputs):
        tensor.requires_grad_()
    best = {"torch": float("inf"), "onednn": float("inf")}
    for number in range(1 + TIMED_ROUNDS):
        for name in best:
            mode = _OneDnnLinear() if name == "onednn" else contextlib.nullcontext()
            start = time.perf_counter()
            with mode:
                output = F.linear(inputs, weight, bias)
                torch.autograd.backward(output, torch.ones_like(output))
            if number:  # the first call of each builds its kernels
                best[name] = min(best[name], time.perf_counter() - start)
    return "onednn" if best["torch"] > CLEARLY_FASTER * best["onednn"] else "torch"


class _OneDnnLinear(TorchFunctionMode):
    """Answers `torch.nn.functional.linear` of fp32 tensors on the CPU by oneDNN."""

    def __init__(self) -> None:
        super().__init__()
        for cache_size in CACHE_SIZES:  # read at the first product
            os.environ.setdefault(cache_size, KEPT_KERNELS)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever torch answers
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """By oneDNN where it computes this; what is wrong goes to torch, which says so."""
    every = (input, weight) if bias is None else (input, weight, bias)
    is_fp32 = all(one.device.type == "cpu" and one.dtype == torch.float32 for one in every)
    agree = input.dim() > 0 and weight.dim() == 2 and input.shape[-1] == weight.shape[1]
    agree = agree and (bias is None or bias.shape == weight.shape[:1])
    is_empty = input.numel() == 0 or weight.numel() == 0
    left_to_torch = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    if not (is_fp32 and agree) or is_empty or left_to_torch:
        return F.linear(input, weight, bias)
    found: Tensor = _Linear.apply(input, weight, bias)
    return found


class _Linear(torch.autograd.Function):
    """`torch.nn.functional.linear` and its gradients, each one product of oneDNN."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401  # torch's
        for_inputs, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(inputs if for_weight else None, weight if for_inputs else None)
        ctx.shape = inputs.shape
        rows = _onednn_product(inputs.reshape(-1, inputs.shape[-1]), weight, bias)
        # as a plain view it could not be changed in place
        found: Tensor = torch.ops.aten._unsafe_view(rows, (*inputs.shape[:-1], len(weight)))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # torch's
        inputs, weight = ctx.saved_tensors
        rows = _dense(gradient.reshape(-1, gradient.shape[-1]))
        found: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            found[0] = _onednn_product(rows, weight.T).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            found[1] = _onednn_product(rows.T, inputs.reshape(-1, inputs.shape[-1]).T)
        if ctx.needs_input_grad[2]:
            found[2] = rows.sum(dim=0)
        return tuple(found)


def _onednn_product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, out) of inputs (n, in), weight (out, in) and bias (out,), in any layout."""
    dense = _dense(inputs), _dense(weight), None if bias is None else bias.contiguous()
    found: Tensor = torch.ops.mkldnn._linear_pointwise(*dense, "none", [], "")
    return found


def _dense(matrix: Tensor) -> Tensor:
    """Without gaps between rows or columns, on which oneDNN falls back to loops."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()
