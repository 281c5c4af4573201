"""The parts of a visit, each run by `visit.py` in a process of its own.

Wherever a user would run a command of `ijepa`, so does a part. A part takes what earlier ones found
from results.jsonl, and has defaults for what is not there.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from session import ROOT, Command, Session, last_line

VARIANTS: dict[str, list[str]] = {  # settings beside the recipe's
    "A": [],
    "B": ["optimization.ema=[0.99,1.0]", "optimization.lr=1e-3"],
    "C": ["targets.layers=[3,6,9,12]"],
    "D": ["masks.min_keep=71"],
    "E": ["targets.space=normalised-pixels"],
}
TRUST = ("C", "B", "D", "E", "A")  # which to take where the sweep does not tell
LIKE = 0.01  # neighbour accuracies that differ by less are alike: 512 images are looked at
FULL_EPOCHS = 200
START_SECONDS = 15.0  # of a training: libraries, decoding all images, the first health check
MARGIN = 0.88  # of the time that remains; health checks and checkpoints take the rest
LOOKS = 4  # health checks of a training
SWEEP_SPARE_SECONDS = 8.0  # for ending five trainings and comparing them
TRAIN_IMAGES, IMAGES_PER_SECOND = 9469, 3000.0  # where nothing is known yet

MINI_VARIANTS = VARIANTS | {"C": ["targets.layers=[1,2]"], "D": ["masks.min_keep=24"]}
SMALL_SOURCE, MINI_SOURCE = "scenes:train=640,val=128", "scenes:train=96,val=48"

NEEDED = (  # packages that the commands of a visit import
    "annotated_types", "braceexpand", "fsspec", "h5py", "jinja2", "numpy", "PIL", "pydantic",
    "pydantic_core", "rich", "safetensors", "scipy", "simplejpeg", "sklearn", "tensorboard", "timm",
    "typer", "typing_inspection", "webdataset", "yaml",
)  # fmt: skip
HELPFUL = ("faiss", "hypothesis", "pytest", "psutil", "torchvision", "triton")
TERMINATED = 143  # exit code of `ijepa` after SIGTERM
PRETRAINED = {name: name for name in ("steps", "images", "loss", "rankme", "loss_vs_mean_target")}


def setup(session: Session) -> None:
    """The shards, without which nothing runs; then the machine and the packages."""
    cores = str(os.cpu_count() or 1)
    if session.rehearse:
        sources = {"shard": (MINI_SOURCE, session.shards)}
    else:
        assert session.data
        full_source = str(session.data.resolve() / "imagenette128.tar")
        sources = {"shard": (full_source, session.shards)}
        sources["shard-small"] = SMALL_SOURCE, session.small_shards
    counts = {"train": "splits.train", "val": "splits.val", "bytes": "bytes"}
    for what, (source, out) in sources.items():
        for workers in (cores, "1"):  # with one process if several do not work there
            words = ["shard", source, out, "--workers", workers]
            if session.ijepa(Command(what, words, counts)).status == "ok":
                break
    session.attempt("machine", lambda: _say_what_is_there(session))


def _say_what_is_there(session: Session) -> None:
    from steps import machine

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    lacking = [name for name in HELPFUL if importlib.util.find_spec(name) is None]
    status = "failed" if missing else "ok"
    session.record("packages", status, missing=" ".join(missing), optional=" ".join(lacking))
    session.record("machine", **machine())


def smoke(session: Session) -> None:
    """Every path of the product, once, side by side."""
    from steps import count_synchronisations

    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "4"  # compiling goes on beside other work
    half = "8" if session.rehearse else "32"
    chains: dict[str, Callable[[], object]] = {
        "compile": lambda: session.ijepa(_tiny(session, "compile", ["--compile"])),
        "shards": lambda: _use_a_run(session),
        "decoded": lambda: session.ijepa(_tiny(session, "decoded", ["--cache", "decoded"])),
        "recompute": lambda: session.ijepa(
            _tiny(session, "recompute", ["--recompute", "--micro-batch", half])
        ),
        "stopped": lambda: _stop_and_resume(session),
        "tests": lambda: _gpu_tests(session),
        "synchronisations": lambda: count_synchronisations(session),
    }
    with ThreadPoolExecutor(2 if session.rehearse else len(chains)) as pool:
        for what, chain in chains.items():
            pool.submit(session.attempt, what, chain)


def _tiny(session: Session, what: str, options: Sequence[str] = (), epochs: int = 2) -> Command:
    """A pretraining of a few steps on few images."""
    sets = [f"optimization.epochs={epochs}", "optimization.warmup_epochs=0.5"]
    sets += [] if session.rehearse else ["data.batch_size=64", "watch.num_images=64"]
    return _pretrain(session, what, sets, [*options, *_few(session)], session.small_shards)


def _use_a_run(session: Session) -> None:
    """Pretrain, extract, probe, fine-tune."""
    session.ijepa(_tiny(session, "shards"))
    run, files = session.runs / "smoke.shards", {}
    for split in ("train", "val"):
        files[split] = session.work / f"smoke.{split}.h5"
        session.ijepa(
            _extract(session, f"extract-{split}", run, split, files[split], session.small_shards)
        )
    session.ijepa(_probe(session, "linear", files["train"], files["val"], "linear"))
    out, batch = session.runs / "smoke.finetune", 16 if session.rehearse else 32
    words = ["finetune", "--encoder", run, "--data", session.small_shards, "--out", out]
    words += ["--workers", _workers(session), "--set", f"batch_size={batch}"]
    words += ["--set", "epochs=1", "--set", "warmup_epochs=0"]
    session.ijepa(Command("finetune", words, {"top1": "scores.0.top1"}))


def _stop_and_resume(session: Session) -> None:
    """SIGTERM after the first checkpoint; the same command goes on."""
    often = ("--checkpoint-seconds", "0.01")
    command = _tiny(session, "resumed", often, epochs=20 if session.rehearse else 12)
    process = session.start(command)
    log, first = session.log(command.what), "smoke.resumed.partial/checkpoints/last.pt"
    while not (session.runs / first).exists():
        if process.poll() is not None or session.left < 0:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code = process.wait(max(session.left, 1.0))
    said = last_line(log.read_text(errors="replace"))
    session.record("stopped", "ok" if code == TERMINATED else "failed", exit_code=code, last=said)
    session.ijepa(command)


def _gpu_tests(session: Session) -> None:
    """Those of the test suite that need a GPU; without one they are skipped."""
    files = [path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text()]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    with session.log("tests").open("wb") as output:
        done = subprocess.run(
            words,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            check=False,
            timeout=max(session.left, 1.0),
        )
    said = last_line(session.log("tests").read_text(errors="replace"))
    session.record("tests", "failed" if done.returncode else "ok", said=said, files=len(files))


def sweep(session: Session) -> None:
    """All variants at equal images, side by side; the winner by its neighbours."""
    variants = MINI_VARIANTS if session.rehearse else VARIANTS
    alone = [*_epochs(6 if session.rehearse else 3), "watch.every_steps=1000000"]
    session.ijepa(_pretrain(session, "pilot", alone, ["--cache", "decoded"]))
    rate = _training_rate(session.runs / "sweep.pilot", session.config().data.batch_size)
    if rate:
        session.record("rate", images_per_second=rate)
    seconds = (session.left - START_SECONDS - SWEEP_SPARE_SECONDS) / len(variants)
    epochs = 2 if session.rehearse else _fitting_epochs(session, seconds, [])
    commands = [
        _pretrain(session, name, [*_epochs(epochs), *settings], ["--cache", "decoded"])
        for name, settings in variants.items()
    ]
    session.side_by_side([one._replace(spare_seconds=SWEEP_SPARE_SECONDS) for one in commands])
    found = {name: _health_checks(session.runs / f"sweep.{name}") for name in variants}
    looks = {name: some for name, some in found.items() if some and "images" in some[-1]}
    for name, some in looks.items():
        last = {key: some[-1].get(key) for key in ("images", "neighbour_accuracy", "rankme")}
        history = [round(look.get("neighbour_accuracy", 0.0), 4) for look in some]
        session.record(f"{name} health", epochs=epochs, **last, history=history)
    if looks:
        images, accuracies = at_equal_images(looks)
        session.record("winner", variant=pick_winner(accuracies), images=images)


def at_equal_images(looks: dict[str, list[dict[str, Any]]]) -> tuple[int, dict[str, float]]:
    """The most images that all variants have seen at a health check, and their accuracies there."""
    images = min(some[-1]["images"] for some in looks.values() if some)
    compared = {
        name: [look for look in some if look.get("images", 0) <= images][-1]
        for name, some in looks.items()
    }
    return images, {name: look.get("neighbour_accuracy", 0.0) for name, look in compared.items()}


def pick_winner(accuracies: dict[str, float]) -> str:
    """The variant with the best neighbours; of those that are alike, the one trusted most."""
    best = max(accuracies.values())
    return next(name for name in TRUST if accuracies.get(name, -1.0) >= best - LIKE)


def full(session: Session) -> None:
    """The winner for as many epochs as there is time; meanwhile the baselines."""
    variants = MINI_VARIANTS if session.rehearse else VARIANTS
    winner = session.find("sweep", "winner", "variant", TRUST[0])
    order = [winner, *(name for name in TRUST if name != winner)]
    with ThreadPoolExecutor(2) as pool:
        baselines = pool.submit(_extract_baselines, session)
        for name in order:
            seconds = session.left - START_SECONDS
            epochs = 3
            if not session.rehearse:
                epochs = _fitting_epochs(session, seconds, variants[name])
            session.record("plan", variant=name, epochs=epochs)
            settings = [*_epochs(epochs), *variants[name]]
            command = _pretrain(session, "run", settings, ["--cache", "decoded"])
            outcome = session.ijepa(command._replace(spare_seconds=SWEEP_SPARE_SECONDS))
            if outcome.status != "failed":
                break
        baselines.result()
    for look in _health_checks(session.runs / "full.run")[-1:]:
        names = ("step", "images", "loss", "neighbour_accuracy", "rankme", "lidar")
        session.record("health", **{name: look.get(name) for name in names})


def _extract_baselines(session: Session) -> None:
    """One after the other, with few workers: the training must not wait for a core."""
    for command in _baselines(session):
        session.ijepa(command._replace(words=[*command.words, *_few(session)]))


def _baselines(session: Session) -> list[Command]:
    """Features of pixels and of the recipe's random initialisation, as far as they are missing."""
    config, control = session.config(), session.runs / "sweep.pilot"
    arch = f"{config.encoder.arch}/{config.encoder.patch_px}@{config.data.image_px}"
    kinds = {"pixels": "pixels", "random": f"random:{control if control.exists() else arch}"}
    return [
        _extract(session, f"{name}-{split}", encoder, split, out)
        for name, encoder in kinds.items()
        for split in ("train", "val")
        if not (out := session.work / f"{name}.{split}.h5").exists()
    ]


def score(session: Session) -> None:
    """Features of the full run, linear and logistic probes beside baselines, the report."""
    encoder, work = _trained(session), session.work
    if encoder is None:
        session.record("encoder", "failed", last="no part has trained a network")
        return
    session.record("encoder", encoder=str(encoder.relative_to(work)))
    files = {"target": (work / "train.h5", work / "val.h5")}
    files["context"] = work / "context.train.h5", work / "context.val.h5"
    few = _few(session)
    session.side_by_side(
        [
            _extract(session, "target-train", encoder, "train", files["target"][0], more=few),
            _extract(session, "target-val", encoder, "val", files["target"][1], more=few),
            *(one._replace(words=[*one.words, *few]) for one in _baselines(session)),  # if missing
        ]
    )
    session.ijepa(_probe(session, "target-linear", *files["target"], "linear"))  # worth most
    context = [*few, "--which", "context"]
    session.side_by_side(
        [
            _probe(session, "target-logistic", *files["target"], "logistic"),
            _extract(session, "context-train", encoder, "train", files["context"][0], more=context),
            _extract(session, "context-val", encoder, "val", files["context"][1], more=context),
        ]
    )
    session.side_by_side(
        _probe(session, f"context-{probe}", *files["context"], probe)
        for probe in ("linear", "logistic")
    )
    results = sorted(work.glob("score.*.json"))
    runs = [path for path in (session.runs / "full.run",) if path.exists()]
    session.ijepa(Command("report", ["report", *results, *runs, "--out", work / "report.html"]))
    for precision in ("fp32", "bf16"):  # one after the other: these are measured
        out, more = work / f"{precision}.train.h5", ["--precision", precision]
        what = f"extract-{precision}-with-start"  # the time includes the start
        session.ijepa(_extract(session, what, encoder, "train", out, more=more))


def _trained(session: Session) -> Path | None:
    """The best network that there is."""
    winner = session.find("sweep", "winner", "variant", TRUST[0])
    runs = [session.runs / name for name in ("full.run", f"sweep.{winner}", "smoke.shards")]
    unfinished = session.runs / "full.run.partial" / "checkpoints" / "last.pt"
    candidates = [runs[0], unfinished, *runs[1:]]
    return next((path for path in candidates if path.exists()), None)


def _pretrain(
    session: Session,
    what: str,
    settings: Iterable[str],
    options: Sequence[str] = (),
    data: Path | None = None,
) -> Command:
    sets = [word for setting in session.settings(settings) for word in ("--set", setting)]
    words: list[str | Path] = ["pretrain", "--recipe", session.recipe]
    words += ["--data", data or session.shards, "--out", session.runs / f"{session.part}.{what}"]
    words += ["--workers", _workers(session), "--replace", *sets, *options]
    return Command(what, words, PRETRAINED)


def _extract(
    session: Session,
    what: str,
    encoder: Path | str,
    split: str,
    out: Path,
    data: Path | None = None,
    more: Sequence[str] = (),
) -> Command:
    """Of the last layer alone, which can be taken home."""
    words = ["extract", "--encoder", encoder, "--data", data or session.shards, "--split", split]
    words += ["--out", out, "--layers", "1", "--workers", _workers(session), *more]
    return Command(what, words, {"images": "images", "dim": "dim"})


def _probe(session: Session, what: str, train: Path, test: Path, probe: str) -> Command:
    """Beside random initialisation and pixels, where their features are there."""
    words = ["probe", probe, "--train", train, "--test", test]
    words += ["--out", session.work / f"{session.part}.{what}.json"]
    numbers = {"top1": "scores.0.top1", "interval": "scores.0.top1_interval"}
    for name in ("random", "pixels"):
        pair = [session.work / f"{name}.{split}.h5" for split in ("train", "val")]
        if session.part == "score" and all(path.exists() for path in pair):
            words += ["--baseline-train", pair[0], "--baseline-test", pair[1]]
            numbers[name] = f"scores.{len(numbers) - 1}.top1"
    return Command(what, words, numbers)


def _epochs(epochs: int) -> list[str]:
    """A schedule of that length, with the recipe's share of warm-up and some health checks."""
    every = max(epochs * TRAIN_IMAGES // 128 // LOOKS, 1)
    return [
        f"optimization.epochs={epochs}",
        f"optimization.warmup_epochs={epochs / 10:g}",
        f"watch.every_steps={every}",
    ]


def _fitting_epochs(session: Session, seconds: float, settings: list[str]) -> int:
    """Epochs of a training of so many seconds, by the rate that the sweep's first run had."""
    rate = session.find("sweep", "rate", "images_per_second", None)
    rate = rate or session.find("shapes", "cudnn-off", "images_per_second", IMAGES_PER_SECOND)
    images = session.find("setup", "shard", "train", TRAIN_IMAGES)
    rate /= max(1.0, relative_cost(session, settings))
    return fitting_epochs(seconds * MARGIN, rate, images)


def relative_cost(session: Session, settings: list[str]) -> float:
    """FLOPs of a step with these settings, relative to the recipe's own."""
    from ijepa.jepa.flops import step_flops
    from ijepa.jepa.masks import mask_statistics

    costs = []
    for config in (session.config(settings), session.config()):
        masks = mask_statistics(config, 20)
        costs.append(sum(step_flops(config, masks.context_patches, masks.target_patches)))
    return costs[0] / costs[1]


def fitting_epochs(seconds: float, images_per_second: float, images: int) -> int:
    """Whole epochs in that time: at least one, at most `FULL_EPOCHS`."""
    return max(1, min(FULL_EPOCHS, int(seconds * images_per_second / images)))


def _training_rate(run: Path, batch: int) -> float | None:
    """Images a second between the first and the last checks of a run, by its TensorBoard log.

    Progress lines count health checks and checkpoints, too, of which a short run has too many.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not (run / "tensorboard").exists():
        return None
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    if "loss" not in events.Tags()["scalars"]:
        return None
    written = [event for event in events.Scalars("loss") if event.step % 10 == 0]
    if len(written) < 3:  # the first ones are slow, the last one follows a check
        return None
    first, last = written[0], written[-1]
    return batch * (last.step - first.step) / max(last.wall_time - first.wall_time, 1e-9)


def _health_checks(run: Path) -> list[dict[str, Any]]:
    """Records of a run, finished or not, that have a health check."""
    from ijepa.files import read_metrics

    for folder in (run, run.with_name(run.name + ".partial")):
        path = folder / "metrics.jsonl"
        if path.exists() and path.stat().st_size:
            return [record for record in read_metrics(path) if "rankme" in record]
    return []


def _few(session: Session) -> list[str]:
    """Loader processes of a command that is not alone."""
    return ["--workers", "1" if session.rehearse else "4"]


def _workers(session: Session) -> str:
    return "1" if session.rehearse else str(max((os.cpu_count() or 1) - 2, 1))


def _in_steps(name: str) -> Callable[[Session], None]:
    """A part that computes; what it needs is imported when it begins."""
    return lambda session: getattr(importlib.import_module("steps"), name)(session)


PARTS: dict[str, Callable[[Session], None]] = {
    "setup": setup,
    "smoke": smoke,
    "shapes": _in_steps("shapes"),
    "bench": _in_steps("benchmark"),
    "sweep": sweep,
    "full": full,
    "score": score,
}
