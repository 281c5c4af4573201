"""How much memory of a GPU work takes at most, counted on fake tensors.

    python -m tests.fake_cuda memory --name S --batch 128

prints the peak of a training step beside what `ijepa pretrain --dry-run` predicts. Not counted are
libraries' workspaces and gaps between allocations.
"""

import argparse
import weakref
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ijepa.config import Runtime
from ijepa.jepa.flops import PLANNED_BATCHES, plan_training
from ijepa.jepa.masks import batch_masks, mask_statistics
from ijepa.jepa.step import Trainer

from .steps import empty_masks, ijepa_on_gpu, images_on_gpu, sized_config
from .tensors import OperationMode, fake_tensors

GIGA = 1e9


class MemoryCounter(OperationMode):
    """Counts the bytes of all CUDA storages that are made while it is entered.

    Attributes:
        live: bytes that are held now.
        peak: most bytes that were ever held.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "cuda":
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, num_bytes = storage._cdata, storage.nbytes()
        if address in self._seen:
            return
        self._seen.add(address)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, address, num_bytes)

    def _remove(self, address: int, num_bytes: int) -> None:
        self._seen.discard(address)
        self.live -= num_bytes


class StepMemory(NamedTuple):
    """Memory of training, in GB of 10^9 bytes.

    Attributes:
        networks: weights of all three networks.
        between_steps: networks and the optimizer's state.
        peak: the most at any time of a step.
        predicted: the peak by `ijepa.jepa.flops.plan_training`.
    """

    networks: float
    between_steps: float
    peak: float
    predicted: float


def step_memory(name: str, batch: int | None, runtime: Runtime = Runtime()) -> StepMemory:  # noqa: B008  # a constant
    """Count a step whose masks are as long as the longest that the plan reckons with.

    Args:
        name: see `steps.sized_config`.
        batch: images of a step; None for 128, or the recipe's.
        runtime: with `micro_batch` and `recompute`.
    """
    config = sized_config(name, batch)
    plan = plan_training(config.data.batch_size, config, runtime, on_gpu=True)
    longest = mask_statistics(config, PLANNED_BATCHES)
    lengths = longest.largest_context, longest.largest_target
    with fake_tensors(), MemoryCounter() as counter:
        model = ijepa_on_gpu(config)
        networks = counter.live
        trainer = Trainer(model, config.optimization, 1000, runtime.micro_batch)
        if runtime.recompute:
            model.encoder.grad_checkpointing = model.predictor.grad_checkpointing = True
        images = images_on_gpu(config)
        masks = [empty_masks(drawn, lengths) for drawn in batch_masks(config, 0)]
        trainer.step(0, images, masks)  # makes the optimizer's state
        between_steps = counter.peak = counter.live
        trainer.step(1, images, masks)
    found = (networks, between_steps, counter.peak)
    return StepMemory(*(number / GIGA for number in found), plan.memory_gb)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a training step on a GPU.")
    parser.add_argument("--name", default="S", help="S, B, L, H or recipe:NAME")
    parser.add_argument("--batch", type=int, help="images of a step; 128, or the recipe's")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--recompute", action="store_true")
    asked = parser.parse_args()
    runtime = Runtime(micro_batch=asked.micro_batch, recompute=asked.recompute)
    found = step_memory(asked.name, asked.batch, runtime)
    print(
        f"{asked.name}: networks {found.networks:.2f} GB, between steps {found.between_steps:.2f}, "
        f"peak of a step {found.peak:.2f}; predicted {found.predicted:.2f} "
        f"({found.predicted / found.peak - 1:+.1%})"
    )
