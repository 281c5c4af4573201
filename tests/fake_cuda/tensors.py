"""Fake tensors on the GPU beside real ones on the CPU. Only for processes of `runtime`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READ_VALUE = "aten::_local_scalar_dense"  # of `item`, `float(tensor)`, `if tensor`
RECORD_STREAM = "aten::record_stream"  # tells the allocator, which fake tensors do not have


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors on the GPU that are made inside have shape, dtype and device, but no values.

    Tensors on the CPU are computed as ever, until a fake one takes part. A value that is read from
    a fake tensor is 1. Backward passes run in the caller's thread, so that its modes see them.
    """
    only_cpu = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device) is a copy that modes see
    try:
        with (
            torch.autograd.set_multithreading_enabled(False),
            mock.patch.object(nn.Module, "_apply", _replace_tensors),
            # So that fake tensors, too, are updated by kernels over many of them.
            mock.patch.object(
                optimizer, "_foreach_supported_types", [Tensor, nn.Parameter, FakeTensor]
            ),
            mock.patch.object(_foreach_utils, "_foreach_supported_types", [Tensor, FakeTensor]),
            FakeTensorMode(allow_non_fake_inputs=True),
            _RealOnCpu(),
        ):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(only_cpu)


class _RealOnCpu(TorchDispatchMode):
    """Keeps real CPU tensors from the fake mode below, and answers where values are read."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        leaves = tree_leaves((args, kwargs))
        is_fake = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        if name == RECORD_STREAM and is_fake:
            return None
        if name == READ_VALUE and is_fake:
            return 1.0 if args[0].is_floating_point() else 1
        if is_fake or not all(_is_on_cpu(leaf) for leaf in leaves):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def _replace_tensors(
    module: nn.Module, fn: Callable[[Tensor], Tensor], *, recurse: bool = True
) -> nn.Module:
    """`nn.Module.to` and its like with new parameters: torch's own cannot swap fake ones."""
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    moved = fn(parameter)
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fn(buffer)
    return module


def _is_on_cpu(leaf: object) -> bool:
    device = leaf.device if isinstance(leaf, Tensor) else leaf
    return not isinstance(device, torch.device) or device.type == "cpu"
