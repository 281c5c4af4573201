"""Products of matrices by the quicker of a CPU's two libraries.

torch brings MKL, which it asks for fp32, and oneDNN, which it asks for bf16 alone. On a CPU of AMD
with AVX-512 MKL leaves half of the speed unused (numbers stand in `benchmarks/results`). Both add
up in fp32. Everywhere else torch decides.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

CPU_FACTS = Path("/proc/cpuinfo")  # of Linux
CACHE_SIZES = "LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # torch's and oneDNN's own
KEPT_KERNELS = "64"  # in place of 1,024, half a MB each: every length of a mask has its own


def quick_products(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, `torch.nn.functional.linear` of any network takes the quicker library.

    The backward pass follows, inside or not; what it computes again (`torch.utils.checkpoint`)
    needs a `context_fn` that says the same. What is compiled keeps its compiler's products. There
    are no second derivatives, nor those of `torch.func`.

    Args:
        device: where the networks compute; on another than the CPU nothing changes.
    """
    if device.type != "cpu" or not onednn_is_quicker():
        return contextlib.nullcontext()
    for cache_size in CACHE_SIZES:  # read at the first product
        os.environ.setdefault(cache_size, KEPT_KERNELS)
    return _QuickLinear()


@torch.no_grad()
def linear_product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, out) what `torch.nn.functional.linear` gives, without a gradient.

    Args:
        inputs: (n, in).
        weight: (out, in).
        bias: (out,).
    """
    if not (_fits(inputs, weight, bias) and onednn_is_quicker()):
        return F.linear(inputs, weight, bias)
    dense = _dense(inputs), _dense(weight), None if bias is None else bias.contiguous()
    found: Tensor = torch.ops.mkldnn._linear_pointwise(*dense, "none", [], "")
    return found


@cache
def onednn_is_quicker() -> bool:
    """Is this a CPU that MKL was not made for, and oneDNN there by the name that we know?"""
    by_amd = CPU_FACTS.exists() and "AuthenticAMD" in CPU_FACTS.read_text()
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return by_amd and wide and _has_onednn()


class _QuickLinear(TorchFunctionMode):
    """Sees what any code asks of torch, and answers `linear` itself."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever torch answers
        if func is F.linear and _fits(*args, **(kwargs or {})):
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = _Linear.apply(input, weight, bias)
    return found


class _Linear(torch.autograd.Function):
    """`torch.nn.functional.linear` and its gradients, each one product."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401  # torch's
        for_inputs, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(inputs if for_weight else None, weight if for_inputs else None)
        ctx.shape = inputs.shape
        rows = linear_product(_rows(inputs), weight, bias)
        # as a plain view it could not be changed in place
        found: Tensor = torch.ops.aten._unsafe_view(rows, (*inputs.shape[:-1], len(weight)))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # torch's
        inputs, weight = ctx.saved_tensors
        rows = _dense(_rows(gradient))
        found: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            found[0] = linear_product(rows, weight.T).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            found[1] = linear_product(rows.T, _rows(inputs).T)
        if ctx.needs_input_grad[2]:
            found[2] = rows.sum(dim=0)
        return tuple(found)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Is it what oneDNN is asked for? What is wrong goes to torch, which says so."""
    left_to_torch = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    every = (input, weight) if bias is None else (input, weight, bias)
    is_fp32 = all(one.device.type == "cpu" and one.dtype == torch.float32 for one in every)
    agree = input.dim() > 0 and weight.dim() == 2 and input.shape[-1] == weight.shape[1]
    agree = agree and (bias is None or bias.shape == weight.shape[:1])
    return is_fp32 and agree and not left_to_torch and input.numel() > 0 and weight.numel() > 0


def _dense(matrix: Tensor) -> Tensor:
    """Without gaps between rows or columns, on which oneDNN falls back to loops."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


def _has_onednn() -> bool:
    """Is oneDNN there, by a name that torch's compiler uses? It has no public one."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
