"""Runs the library's own steps on a fake GPU, and prints what was seen as one JSON object.

Each name of `CLAIMS` becomes a key; its value is `{"seen": ...}` or, where the work failed as it
would on a GPU, `{"error": traceback}`. `tests/test_gpu_rig.py` says what must be seen.
"""

import contextlib
import functools
import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed
from PIL import Image
from torch import Tensor

from ijepa import distributed
from ijepa.config import (
    DataConfig,
    DecoderConfig,
    FinetuneConfig,
    PretrainConfig,
    Runtime,
    architecture,
)
from ijepa.data.loader import Batch, RandomCropBatches, StepPlan
from ijepa.data.shards import Sample
from ijepa.decoder.model import evaluate_decoder
from ijepa.distributed import joined
from ijepa.encoders.base import Encoder
from ijepa.encoders.pooling import PATCH_AVERAGE, token_pool
from ijepa.jepa.augment import normalise
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.step import Trainer
from ijepa.jepa.vit import build_encoder
from ijepa.probes.heads import Heads
from ijepa.probes.protocols import LINEAR_PROTOCOLS
from ijepa.progress import silent
from ijepa.provenance import UNKNOWN
from ijepa.recipes import load_recipe
from ijepa.train.classifier import Classifier
from ijepa.train.finetuning import FinetuneTask, LabelledImages
from ijepa.train.loop import fit
from ijepa.train.pretraining import PretrainTask
from ijepa.train.watch import Watch
from ijepa.train_decoder.training import DecoderTask

from .kernels import Kernel, recorded
from .lint import Finding, lint
from .memory import step_memory
from .steps import GPU, empty_masks, ijepa_on_gpu, images_on_gpu
from .tensors import fake_tensors

BATCH, GROUP = 8, 4
FAMILIES = {  # of recipes, each with settings of its own
    "small": ("imagenette-vits16",),
    "published": ("in1k_vith14_ep300",),
    "rasterized-masks": ("table06_rasterized",),
    "block-masks": ("table06_block",),
    "random-masks": ("table06_random",),
    "input-masked": ("table11_input-masked",),
    "pixels": ("table07_pixels",),
    "several-layers": ("imagenette-vits16", "targets.layers=[1,2]"),
}
PROTOCOLS = ("ijepa", "vissl-cifar100", "mae-lars", "dinov2-linear")
CACHES = ("none", "decoded")
ON_GPU = Runtime(device="cuda", workers=0, cache="decoded")


class Pictures:
    """Encoded images of noise with labels, as a split of a shard set gives them."""

    def __init__(self, count: int, side_px: int) -> None:
        rng = np.random.default_rng(0)
        self._files = []
        for _ in range(count):
            file = io.BytesIO()
            pixels = rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "jpeg")
            self._files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self._files)

    def read_image(self, number: int) -> bytes:
        return self._files[number]

    def read_map(self, number: int, label: str) -> Any:
        raise AssertionError(f"picture {number} has no map {label}")

    def read_sample(self, number: int) -> Sample:
        return Sample(str(number), self._files[number], {"class": number % 4})


def shallow(recipe: str, *more: str) -> PretrainConfig:
    """A recipe with two blocks in each network and a batch of two groups of masks, in bf16."""
    size = architecture(load_recipe(recipe).encoder.arch)
    overrides = [
        f"encoder.arch={size.dim}x2x{size.heads}",
        "predictor.depth=2",
        f"data.batch_size={BATCH}",
        f"masks.group_size={GROUP}",
        "masks.min_keep=4",
        "watch.num_images=8",
        *more,
    ]
    return load_recipe(recipe, overrides)


def devices(tensors: Iterator[object]) -> list[str]:
    """Where tensors are, each place once; other things are left out."""
    return sorted({str(tensor.device) for tensor in tensors if isinstance(tensor, Tensor)})


@contextlib.contextmanager
def working_inline() -> Iterator[None]:
    """Without the thread that works ahead: fake tensors belong to one thread."""
    with mock.patch.object(distributed, "prefetched", lambda items, *_: items):
        yield


def training(recipe: str, *overrides: str, in_parts: bool = False) -> dict[str, Any]:
    """A step: where all that it leaves behind is, and in what dtypes attention computes.

    Args:
        recipe: its name.
        overrides: of its settings.
        in_parts: three images at a time, blocks computed again in the backward pass.
    """
    config = shallow(recipe, *overrides)
    model = ijepa_on_gpu(config)
    trainer = Trainer(model, config.optimization, 10, 3 if in_parts else None)
    if in_parts:
        model.encoder.grad_checkpointing = model.predictor.grad_checkpointing = True

    def step(number: int) -> None:
        groups = [empty_masks(drawn) for drawn in batch_masks(config, number)]
        outcome = trainer.step(number, images_on_gpu(config), groups)
        left.extend([*outcome, *model.parameters()])
        left.extend(value for state in trainer.optimizer.state.values() for value in state.values())

    left: list[object] = []
    kernels = recorded(lambda: step(0))
    fused = any("_fused_adamw" in kernel.name for kernel in kernels)
    return {"devices": devices(left), "attention": _attention(kernels), "fused_adamw": fused}


def whole_run(cache: str) -> dict[str, Any]:
    """A run of two steps from pictures to its last checkpoint, which is then loaded again."""
    config = shallow("imagenette-vits16", "optimization.epochs=1", "optimization.warmup_epochs=0")
    runtime = ON_GPU.model_copy(update={"cache": cache})

    task, again = (PretrainTask(config, Pictures(2 * BATCH, 40), runtime) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder, working_inline():
        fit(task, Path(folder))
        fit(again, Path(folder))  # all steps are taken
        files = sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*.pt"))
        steps = len((Path(folder) / "metrics.jsonl").read_text().splitlines()) - 1  # of step 0
    resumed = [value for state in again.optimizer.state.values() for value in state.values()]
    assert len(resumed) == 3 * len([p for p in again.model.parameters() if p.requires_grad])
    left = [*task.model.parameters(), *again.model.parameters(), *resumed]
    return {"steps": steps, "devices": devices(left), "files": files}


def waits_of_training() -> list[Finding]:
    """What a step waits for whose images and masks are on the GPU already."""
    config = shallow("imagenette-vits16")
    trainer = Trainer(ijepa_on_gpu(config), config.optimization, 10)

    def step(number: int) -> None:
        masks = [empty_masks(drawn) for drawn in batch_masks(config, number)]
        outcome = trainer.step(number, images_on_gpu(config), masks)
        torch.stack([outcome.loss, outcome.grad_norm])  # as the loop keeps them

    step(0)
    return lint(lambda: step(1))


def waits_of_preparing() -> list[Finding]:
    """What making a step's inputs waits for, from batches that a DataLoader has pinned."""
    config = shallow("imagenette-vits16")
    task = PretrainTask(config, Pictures(2 * BATCH, 40), ON_GPU)

    def made() -> Iterator[Batch]:
        for step in range(2):
            images = torch.zeros(BATCH, 3, *config.data.image_size, dtype=torch.uint8)
            yield Batch(step, images.pin_memory(), torch.arange(BATCH))

    with working_inline():
        inputs = distributed.prepared(made(), task.prepare, GPU)
        next(inputs)  # may bring constants to the GPU
        return lint(lambda: next(inputs))


def decoded_cache() -> dict[str, Any]:
    """Batches of the decoded cache: where they are, and what making one waits for."""
    config = shallow("imagenette-vits16")
    images = Pictures(2 * BATCH, 40)
    made = PretrainTask(config, images, ON_GPU).batches(range(3))
    first, later = next(made), []  # the first decodes
    findings = lint(lambda: later.extend(made))
    every = [first, *later]
    return {
        "steps": [batch.step for batch in every],
        "devices": devices(batch.images for batch in every),
        "shapes": sorted({tuple(batch.images.shape) for batch in every}),
        "findings": findings,
    }


def extraction() -> dict[str, Any]:
    """Features of a frozen encoder."""
    config = shallow("in1k_vith14_ep300")
    encoder = ijepa_on_gpu(config).target_encoder.eval()
    pooled = token_pool(encoder, PATCH_AVERAGE)
    facts = {"name": "fake", "provenance": UNKNOWN}
    frozen = Encoder(encoder, pooled, config.data, **facts)
    images = torch.empty(BATCH, 3, *config.data.image_size, dtype=torch.uint8, device=GPU)
    pixels = normalise(images, config.data.mean, config.data.std)
    every = [frozen.features(pixels, 2, bf16=bf16) for bf16 in (True, False)]
    return {"devices": devices(every), "dtypes": sorted({str(one.dtype) for one in every})}


def health_check() -> list[str]:
    """Which numbers the health check gives."""
    config = shallow("imagenette-vits16")
    pictures = Pictures(config.watch.num_images, 40)
    samples = [pictures.read_sample(number) for number in range(len(pictures))]
    return sorted(Watch(config, samples, GPU).check(ijepa_on_gpu(config)))


def linear_heads(protocol: str) -> list[str]:
    """Where the weights of heads are after a step, and what they predict."""
    in_bf16 = replace(LINEAR_PROTOCOLS[protocol], bf16=True)  # as `ijepa probe` on a GPU
    heads = Heads(in_bf16, {"last": 16, "concat": 64}, 10, 256, 0, GPU)
    inputs = {"last": torch.empty(32, 16, device=GPU), "concat": torch.empty(32, 64, device=GPU)}
    labels = torch.zeros(32, dtype=torch.int64, device=GPU)
    heads.step(inputs, labels, 0.0)
    values = torch.utils._pytree.tree_leaves(heads.state_dict()["groups"])
    return devices([heads.predict(inputs), *values])


def fine_tuning() -> int:
    """Steps of a fine-tuning, with its watch and its scores at the end."""
    config = FinetuneConfig(encoder="fake", epochs=1, batch_size=BATCH, mixup=0.8, drop_path=0.1)
    run_config = shallow("imagenette-vits16")
    generator = torch.Generator().manual_seed(0)
    size = run_config.data.image_size
    model = Classifier(build_encoder(run_config.encoder, size, generator), 4, 0.1, generator)
    pictures, numbers = Pictures(3 * BATCH, 40), np.arange(3 * BATCH)
    keys = [str(number) for number in numbers]
    train, rest = (
        LabelledImages(pictures, chosen, chosen % 4, keys)
        for chosen in (numbers[: 2 * BATCH], numbers[2 * BATCH :])
    )
    data = DataConfig(image_px=size, batch_size=BATCH)
    task = FinetuneTask(model, (train, rest), config, data, ON_GPU)
    with tempfile.TemporaryDirectory() as folder, working_inline():
        fit(task, Path(folder))
        steps = len((Path(folder) / "metrics.jsonl").read_text().splitlines())
    task.predictions(rest, silent)
    assert devices(task.model.parameters()) == [str(GPU)]
    return steps


def decoder() -> int:
    """Steps of a decoder of predictions, with its evaluation at the end."""
    config = DecoderConfig(encoder="fake", steps=2, batch_size=BATCH, statistics_images=32,
                           sampling_steps=2)  # fmt: skip
    source = shallow("imagenette-vits16")
    jepa = ijepa_on_gpu(source).eval()
    crops = RandomCropBatches(Pictures(4 * BATCH, 40), StepPlan(4 * BATCH, source.data, 0))
    task = DecoderTask(config, jepa, source, "", crops, ON_GPU)
    with tempfile.TemporaryDirectory() as folder, working_inline():
        fit(task, Path(folder))
        steps = len((Path(folder) / "metrics.jsonl").read_text().splitlines())
    images = torch.empty(BATCH, 3, *source.data.image_size, dtype=torch.uint8, device=GPU)
    evaluate_decoder(task.averaged, jepa, source, images, silent)
    assert devices(task.averaged.parameters()) == [str(GPU)]
    return steps


def attention(*, shapes_vary: bool) -> dict[str, Any]:
    """Kernels of attention over masks of many lengths, as the training loop computes."""
    from ijepa.compute import computing

    config = shallow("imagenette-vits16", f"masks.group_size={GROUP // 2}")
    trainer = Trainer(ijepa_on_gpu(config), config.optimization, 10)

    def steps() -> None:
        for number in range(2):
            masks = [empty_masks(drawn) for drawn in batch_masks(config, number)]
            trainer.step(number, images_on_gpu(config), masks)

    with computing(GPU, shapes_vary=shapes_vary):
        allowed = torch.backends.cuda.cudnn_sdp_enabled()
        return {"cudnn_allowed": allowed, "kernels": _attention(recorded(steps))}


def steps_of_the_visit() -> list[str]:
    """Kernels of matrix products in a step of ours and of a plain one, as the visit takes them."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import bench_train_step as bench

    config = bench.config_of(bench.Size("32x2x2", 8, 64, 16, 1, 4, 4), 4)
    work = bench.Workload(
        config, images_on_gpu(config), [empty_masks(masks) for masks in batch_masks(config, 0)]
    )
    networks = mock.patch.object(bench, "draw_networks", lambda config, _: ijepa_on_gpu(config))
    with networks:
        steps = bench.our_step(work), bench.plain_step(work)
    kernels = recorded(lambda: [step(0) for step in steps])
    return sorted({kernel.name for kernel in kernels if "mm" in kernel.name})


def memory(name: str) -> dict[str, float]:
    """Counted and predicted, GB."""
    return step_memory(name, 128)._asdict()


def devices_of_ranks() -> list[tuple[int, bool]]:
    """Each rank's current device when it makes the process group, and whether it is patient."""
    seen = []

    def note(*_: object, **how: Any) -> None:
        seen.append((torch.cuda.current_device(), how["timeout"] >= timedelta(hours=1)))

    group = mock.patch.multiple(
        torch.distributed, init_process_group=note, destroy_process_group=lambda: None
    )
    for rank in range(2):
        torch.cuda.set_device(0)
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        with mock.patch.dict(os.environ, variables), group, joined(torch.device("cuda", rank)):
            pass
    torch.cuda.set_device(0)
    return seen


def known_faults() -> dict[str, Any]:
    """What the lint says of work that has one fault of each kind, and whether devices may mix."""
    on_gpu, on_cpu = torch.ones(3, device=GPU), torch.ones(3)
    pinned = on_cpu.pin_memory()

    def work() -> None:
        pinned.to(GPU, non_blocking=True)  # the right way
        on_cpu.to(GPU, non_blocking=True)
        on_cpu.to(GPU)
        torch.tensor([1.0, 2.0], device=GPU)
        on_gpu.cpu()
        float(on_gpu.sum())

    with torch.inference_mode():
        hidden = [finding.what for finding in lint(lambda: on_cpu.to(GPU))]
    try:
        on_gpu + on_cpu
    except RuntimeError as error:
        mixed = str(error)
    return {"waits": [finding.what for finding in lint(work)], "hidden": hidden, "mixed": mixed}


CLAIMS: dict[str, Callable[[], Any]] = {
    "known faults": known_faults,
    "devices of ranks": devices_of_ranks,
    **{f"training {name}": functools.partial(training, *FAMILIES[name]) for name in FAMILIES},
    "training in-parts": functools.partial(training, *FAMILIES["small"], in_parts=True),
    **{f"whole run, cache {name}": functools.partial(whole_run, name) for name in CACHES},
    "waits of training": waits_of_training,
    "waits of preparing": waits_of_preparing,
    "decoded cache": decoded_cache,
    "extraction": extraction,
    "health check": health_check,
    **{f"linear heads {name}": functools.partial(linear_heads, name) for name in PROTOCOLS},
    "fine-tuning": fine_tuning,
    "decoder": decoder,
    "attention of varying lengths": functools.partial(attention, shapes_vary=True),
    "attention of few lengths": functools.partial(attention, shapes_vary=False),
    "steps of the visit": steps_of_the_visit,
    "memory S": functools.partial(memory, "S"),
    "memory H": functools.partial(memory, "H"),
}


def main() -> None:
    chosen = sys.argv[1:] or CLAIMS
    found = {}
    with fake_tensors():  # one mode for all, as the library keeps some tensors
        for name in chosen:
            start = time.perf_counter()
            try:
                found[name] = {"seen": CLAIMS[name]()}
            except Exception:  # noqa: BLE001  # whatever fails on a GPU is what the tests ask about
                found[name] = {"error": traceback.format_exc()}
            print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    print(json.dumps(found))


def _attention(kernels: list[Kernel]) -> list[str]:
    names = {f"{k.name} {k.dtype}".replace("torch.", "") for k in kernels if "attention" in k.name}
    return sorted(names)
