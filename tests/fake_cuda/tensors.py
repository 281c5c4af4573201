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

_is_composite = torch._C._dispatch_has_kernel_for_dispatch_key
READ_VALUE = "aten::_local_scalar_dense"  # of `item`, `float(tensor)`, `if tensor`


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors on the GPU that are made inside have shape, dtype and device, but no values.

    Tensors on the CPU are computed as ever. What is copied there from the GPU, or read as a Python
    value, is 1; what `any` answers is False. Backward passes run in the caller's thread, so that
    its modes see them.
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


class OperationMode(TorchDispatchMode):
    """Base of modes that see every single operation, and decide in `operation` what it gives."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Under torch.inference_mode, operations come here that are made of others, such as `to`.
        if func.namespace == "aten" and _is_composite(func.name(), "CompositeImplicitAutograd"):
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return self.operation(func, args, kwargs or {})

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func(*args, **kwargs)` gives; without the mode itself, with those below it."""
        raise NotImplementedError


class _RealOnCpu(OperationMode):
    """Keeps real CPU tensors from the fake mode below, and invents values where some are read."""

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func._schema.name
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(leaf, FakeTensor) for leaf in leaves):
            if not all(_is_on_cpu(leaf) for leaf in leaves):
                return func(*args, **kwargs)
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        invented = INVENTED[name](*args, **kwargs) if name in INVENTED else NotImplemented
        if invented is not NotImplemented:
            return invented
        result = func(*args, **kwargs)
        if name == "aten::any":
            result.invented = 0
        return result


def _read(tensor: Tensor) -> float:
    value = getattr(tensor, "invented", 1)
    return float(value) if tensor.is_floating_point() else value


def _copied(source: Tensor, **how: Any) -> Any:
    if torch.device(how.get("device") or source.device).type != "cpu":
        return NotImplemented
    with unset_fake_temporarily():
        return torch.ones(source.shape, dtype=how.get("dtype") or source.dtype)


def _copied_into(target: Tensor, _source: Tensor, *_: Any, **__: Any) -> Any:
    is_real = target.device.type == "cpu" and not isinstance(target, FakeTensor)
    if not is_real:
        return NotImplemented
    with unset_fake_temporarily():
        return target.fill_(1)


def _unique(tensor: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As if all values differed."""
    places = torch.empty_like(tensor, dtype=torch.int64)
    return torch.empty_like(tensor).flatten(), places, places.flatten()


def _pinned(tensor: Tensor, *_: Any, **__: Any) -> Any:
    raise RuntimeError(f"cannot pin a tensor on {tensor.device}; only those on the CPU can be")


# What is answered in place of the fake mode, for operations that involve a fake tensor.
INVENTED: dict[str, Callable[..., Any]] = {
    READ_VALUE: _read,
    "aten::_to_copy": _copied,
    "aten::copy_": _copied_into,
    "aten::_unique2": _unique,
    "aten::_pin_memory": _pinned,
    "aten::pin_memory": _pinned,
    "aten::record_stream": lambda *_: None,  # tells the allocator, which fake tensors do not have
}


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
