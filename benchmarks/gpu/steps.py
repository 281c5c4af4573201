"""The parts of a visit that measure steps in their own process, and what the machine is."""

import os
import platform
import shutil
import subprocess
import warnings
from collections import Counter
from pathlib import Path

import bench_train_step as bench
import torch
from session import NO_TIME, Session

BENCHES = [  # size, batch, way; the most valuable first
    ("H/14", 128, "eager"), ("H/14", 128, "compiled"), ("H/14", 128, "plain"),
    ("S/16", 256, "eager"), ("S/16", 256, "compiled"), ("S/16", 256, "plain"),
    ("S/16", 256, "profile"), ("H/14", 128, "profile"),
    ("B/16", 256, "eager"), ("B/16", 256, "compiled"), ("B/16", 256, "plain"),
    ("L/16", 128, "eager"), ("L/16", 128, "compiled"), ("L/16", 128, "plain"),
    ("H/14", 256, "compiled"), ("H/14", 256, "eager"),
]  # fmt: skip
MINI_BENCHES = [("mini", 4, way) for way in ("eager", "compiled", "plain", "profile")]
MINI_SIZE = bench.Size("32x2x2", 8, 64, 16, 1, 4, 4)
SETTLED_STEPS = 2  # of a training, after which what is made once is there
LAST_STEPS = 10  # of a training, whose numbers are fetched with its checkpoint
SHAPES_SPARE_SECONDS = 3.0
BENCH_SECONDS = 4.0  # less than this is not enough for one more


def machine() -> dict[str, object]:
    """What there is."""
    found: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "shm_gb": shutil.disk_usage("/dev/shm").total / 1e9,
        "device": "cpu",
    }
    if torch.cuda.is_available():
        found |= {
            "device": torch.cuda.get_device_name(),
            "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi", "-q"], check=False)  # into the log
    return found


def count_synchronisations(session: Session) -> None:
    """Where a training waits for the GPU, after its first steps."""
    from ijepa.config import Runtime
    from ijepa.pretrain import pretrain

    steps: list[int] = []

    def progress(task: str, done: int, total: int | None, _values: object = None) -> None:
        batch = config.data.batch_size
        last = (total or 0) - LAST_STEPS * batch  # then come the last check and checkpoint
        is_counted = task == "pretrain images" and SETTLED_STEPS * batch < done <= last
        if is_counted:
            steps.append(done // batch)
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn" if is_counted and done < last else "default")

    epochs = 20 if session.rehearse else 5
    config = session.config(
        [f"optimization.epochs={epochs}", "data.batch_size=16", "watch.num_images=32"]
    )
    out = session.runs / "smoke.synchronisations"
    runtime = Runtime(cache="decoded", workers=1, force=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pretrain(session.small_shards, out, config, runtime, progress)
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if "synchronizing" in str(warning.message)
    )
    num_steps = steps[-1] - steps[0]
    session.record(
        "synchronisations",
        steps=num_steps,
        per_step=places.total() / num_steps,
        places=dict(places.most_common(12)),
    )


def shapes(session: Session) -> None:
    """Steps of the recipe with the masks of training, with cuDNN's attention and without."""
    work = bench.prepare(session.config(), vary=True)
    steps = 2 if session.rehearse else bench.BLOCK_STEPS
    used = work.masks[: 3 * steps]
    lengths = {(masks.context.shape[1], masks.targets.shape[2]) for masks in used}
    session.record("lengths", steps=len(used), distinct=len(lengths))
    for block, seconds in enumerate(bench.timed_blocks(bench.our_step(work), 3, steps=steps)):
        session.record("cudnn-off", block=block, ms=1000 * seconds, **bench.speed(work, seconds))
    step = bench.our_step(work, cudnn=True)  # a step at a time: each new shape may take seconds
    for number, seconds in enumerate(bench.timed_blocks(step, len(used), steps=1)):
        session.record("cudnn-on", step=number, ms=1000 * seconds)
        if session.left < SHAPES_SPARE_SECONDS:
            return
    for block, seconds in enumerate(bench.timed_blocks(step, 3, steps=steps)):  # the same shapes
        session.record("cudnn-again", block=block, ms=1000 * seconds)


def benchmark(session: Session) -> None:
    """Training steps, ours and plain, one after the other, alone on the machine."""
    for name, batch, way in MINI_BENCHES if session.rehearse else BENCHES:
        what = f"{name} {batch} {way}"
        if session.left < BENCH_SECONDS:
            session.record(what, "skipped", last=NO_TIME)
            continue
        session.attempt(what, lambda: _bench(session, name, batch, way))  # noqa: B023  # called at once
        torch._dynamo.reset()
        bench.free_memory()


def _bench(session: Session, name: str, batch: int, way: str) -> None:
    size = MINI_SIZE if session.rehearse else bench.SIZES[name]
    work = bench.prepare(bench.config_of(size, batch), vary=True)
    backend = "eager" if session.rehearse else "inductor"
    step = (
        bench.plain_step(work)
        if way == "plain"
        else bench.our_step(work, compiled=way == "compiled", backend=backend)
    )
    if way == "profile":
        step(0)
        profiler = bench.profile_steps(step, 2)
        session.record(f"{name} {batch} shares", **bench.time_shares(profiler))
        is_first = not (session.work / "trace.json.gz").exists()
        kept = session.work if is_first else session.work / "logs"
        profiler.export_chrome_trace(str(kept / "trace.json.gz"))
        return
    found = bench.measure(step, 2 if session.rehearse else bench.BLOCK_STEPS)
    session.record(
        f"{name} {batch} {way}",
        **bench.speed(work, found.seconds),
        **found._asdict(),
    )
    _compare_with_plain(session, f"{name} {batch}")


def _compare_with_plain(session: Session, what: str) -> None:
    """Ratios, as soon as both sides are there; and how far the first losses are apart."""
    plain = session.find("bench", f"{what} plain", "seconds", None)
    ours = {
        way: session.find("bench", f"{what} {way}", "seconds", None)
        for way in ("eager", "compiled")
    }
    if plain is None or ours["eager"] is None:
        return
    ratios = {way: plain / seconds for way, seconds in ours.items() if seconds}
    losses = [
        session.find("bench", f"{what} {way}", "first_loss", None) for way in ("eager", "plain")
    ]
    apart = abs(losses[0] - losses[1]) / losses[1]
    session.record(f"{what} ratio", **ratios, losses_apart=apart)
