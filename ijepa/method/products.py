"""Products of matrices that nothing is traced through, by the quicker of a CPU's two libraries.

torch brings MKL, which it asks for fp32, and oneDNN, which it asks for bf16 alone. On an AMD CPU
with AVX-512 MKL leaves half of the speed unused (numbers stand in `benchmarks/results`). Both add
up in fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def linear_product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, out) what `torch.nn.functional.linear` gives, without a gradient.

    Args:
        inputs: (n, in).
        weight: (out, in).
        bias: (out,).
    """
    if inputs.device.type != "cpu" or inputs.dtype != torch.float32 or not _has_onednn():
        return F.linear(inputs, weight, bias)
    dense = _dense(inputs), _dense(weight)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(*dense, bias, "none", [], "")
    return found


def _dense(matrix: Tensor) -> Tensor:
    """Without gaps between rows or columns, on which oneDNN falls back to loops."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


def _has_onednn() -> bool:
    """Is oneDNN there, by a name that torch's compiler uses? It has no public one."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
