"""Which kernels some work launches on an H100, and a roofline of the time that they take.

Rates are what such cards reach, not what their data sheet says. The sum is good to about 20%.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .tensors import OperationMode

MEMORY_RATE = 2.6e12  # bytes/s
LAUNCH_SECONDS = 2e-6  # between two kernels, on the GPU's side
HOST_SECONDS = 7e-6  # that Python and torch take to launch one
PROCESSORS, TILE = 132, (128, 256)  # rows and columns of a product that one processor works on
PRODUCT_RATES = {  # multiplications of matrices, FLOP/s
    torch.float32: 45e12,  # without TF32
    torch.bfloat16: 720e12,
    torch.float8_e4m3fn: 1300e12,
}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm")
OTHER_RATES = {
    "attention": 200e12,
    "attention backward": 150e12,
    "convolution": 60e12,
    "convolution backward": 30e12,
}
TENSORS_A_KERNEL = 110  # of those that work on lists of tensors
FREE = {  # launch nothing
    "_local_scalar_dense",
    "_unsafe_view",
    "_reshape_alias",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "record_stream",
}
KINDS = {  # by what the name of an operation holds; the first that fits
    "attention": "attention",
    "products of matrices": "mm$",
    "patch embedding": "convolution",
    "optimizer and EMA": "_foreach|_fused|linalg_vector_norm",
    "norms": "norm",
    "GELU": "gelu",
    "casts and copies": "_to_copy|copy_|clone|cat|repeat|stack",
}


class Kernel(NamedTuple):
    """One operation on the GPU.

    Attributes:
        name: torch's, such as `addmm`.
        dtype: of its first input.
        launches: kernels, more than 1 where it works on a long list of tensors.
        flops: of products of matrices and attention; else 0.
        num_bytes: read and written.
        seconds: on an H100, by the roofline.
    """

    name: str
    dtype: torch.dtype | None
    launches: int
    flops: float
    num_bytes: int
    seconds: float

    @property
    def kind(self) -> str:
        """A key of `KINDS`, or `other`."""
        return next((kind for kind, names in KINDS.items() if re.search(names, self.name)), "other")


class KernelRecorder(OperationMode):
    """Notes all operations on CUDA tensors in `kernels` while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        library, name = func._schema.name.split("::")
        if library != "prim" and not (func.is_view or name in FREE):
            inputs, outputs = (_on_gpu(tree) for tree in ((args, kwargs), result))
            if inputs or outputs:
                self.kernels.append(_kernel(name, inputs, outputs))
        return result


def recorded(work: Callable[[], object]) -> list[Kernel]:
    """The kernels that `work` launches; call it inside `fake_tensors`."""
    with KernelRecorder() as recorder:
        work()
    return recorder.kernels


def _kernel(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> Kernel:
    flops, rate = _products(name, inputs, outputs)
    num_bytes = sum(_touched(tensor) for tensor in (*inputs, *outputs))
    launches = 1
    if name.startswith(("_foreach", "_fused")):
        launches = math.ceil(len(inputs) / TENSORS_A_KERNEL)
    seconds = max(flops / rate, num_bytes / MEMORY_RATE) + launches * LAUNCH_SECONDS
    dtype = inputs[0].dtype if inputs else None
    return Kernel(name, dtype, launches, flops, num_bytes, seconds)


def _products(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> tuple[float, float]:
    """FLOPs, and FLOP/s at that size."""
    if name in PRODUCTS:
        matrices = [tensor for tensor in inputs if tensor.dim() >= 2]
        left, right = matrices[:2] if name == "_scaled_mm" else matrices[-2:]
        rows, depth, columns = *left.shape[-2:], right.shape[-1]
        batch = len(left) if left.dim() == 3 else 1
        return 2.0 * batch * rows * depth * columns, _rate(batch, rows, columns, depth, left.dtype)
    backward = " backward" if "backward" in name else ""
    if "attention" in name:
        query, key = inputs[1:3] if backward else inputs[:2]
        pairs = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] * query.shape[3]
        return (10.0 if backward else 4.0) * pairs, OTHER_RATES["attention" + backward]
    if "convolution" in name:
        weight, pixels = (inputs[2], inputs[0]) if backward else (inputs[1], outputs[0])
        images_and_weight = sum(output.dim() == 4 for output in outputs) if backward else 1
        flops = 2.0 * pixels.numel() * weight[0].numel() * images_and_weight
        return flops, OTHER_RATES["convolution" + backward]
    return 0.0, 1.0


def _rate(batch: int, rows: int, columns: int, depth: int, dtype: torch.dtype) -> float:
    """FLOP/s of a product: less where sums are short, or where tiles do not fill the processors."""
    peak = PRODUCT_RATES.get(dtype, PRODUCT_RATES[torch.bfloat16])
    tiles = batch * math.ceil(rows / TILE[0]) * math.ceil(columns / TILE[1])
    if tiles < PROCESSORS:  # sums are then cut into pieces of at least 512, and added up
        pieces = max(1, min(depth // 512, PROCESSORS // tiles))
        filled = tiles * pieces / PROCESSORS * (0.75 if pieces > 1 else 1.0)
    else:
        waves = tiles / PROCESSORS
        filled = max(0.8, waves / math.ceil(waves))  # the last wave overlaps what comes next
    return peak * filled * min(1.0, depth / (depth + 128) * 9 / 8)


def _touched(tensor: Tensor) -> int:
    """Bytes in memory; what is expanded is there once."""
    places = [size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
    return math.prod(places) * tensor.element_size()


def _on_gpu(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_cuda]
