"""Prove that a restructuring changed no number.

    python benchmarks/goldens.py record before.json
    ... change the code ...
    python benchmarks/goldens.py record after.json
    python benchmarks/goldens.py compare before.json after.json

`record` drives the command line on small fixed data, on one thread of the CPU, and writes down what
came out: one flat JSON of names and values. Arrays are told by shape, mean and sha256, so that two
values that differ also say by how much. `--part` (repeatable) records some parts alone, in both
commands: shards, masks, pretrain, features, probes, finetune, decoder, figures, convert, recipes.

What is on disk may change its form, names and values may not: a form is read at the end of this
file, by one function a kind of file. Numbers of different machines, or different versions of torch,
are not comparable.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "IJEPA_CPU_LINEAR": "torch", "CUDA_VISIBLE_DEVICES": ""}

import argparse
import contextlib
import csv
import functools
import hashlib
import io
import itertools
import json
import math
import runpy
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import foreign_weights as foreign  # noqa: E402  # found by the line above

Values = Iterator[tuple[str, object]]
CPU = ("--device", "cpu", "--workers", "0")
TINY = (  # a run of 8 steps; each step has its masks, its schedules and, twice, its watch
    "encoder.arch=32x4x2", "predictor.dim=16", "predictor.depth=1", "masks.min_keep=4",
    "data.batch_size=16", "optimization.epochs=2", "optimization.warmup_epochs=0.5",
    "watch.every_steps=4", "watch.num_images=32", "watch.label=count", "checkpoint_epochs=1",
    "optimization.ema=[0.996,1]", "optimization.schedule=cosine",
)  # fmt: skip
MASKS = {
    f"{kind} {draw}": (f"masks.kind={kind}", f"masks.draw={draw}")
    for kind in ("multiblock", "rasterized", "block", "random")
    for draw in ("published", "symmetric")
}
RUNS = MASKS | {
    "context_patches": ("masks.context_patches=12",),
    "group_size": ("masks.group_size=4", "shared_draws=true"),
    "not square": ("data.image_px=[64,48]",),
    "pixels": ("targets.space=pixels",),
    "normalised pixels": ("targets.space=normalised-pixels",),
    "masked input": ("targets.masked=input",),
    "layers": ("targets.layers=[2,4]",),
    "l1": ("targets.loss=l1", "encoder.init=published"),
    "l2": ("targets.loss=l2", "encoder.init=depth-scaled"),
    "hold then cool": ("optimization.schedule=hold-then-cool", "optimization.ema=[0.99,0.99]"),
    "weight decay": ("optimization.final_weight_decay=0.4", "optimization.schedule_scale=1.25"),
    "bf16": ("optimization.precision=bf16", "optimization.teacher=mixed"),
    "seed": ("seed=1", "data.flip=false", "encoder.position_scale=1"),
}
HOW = {"micro-batch": ("--micro-batch", "4"), "recompute": ("--recompute",),
       "cache": ("--cache", "decoded")}  # fmt: skip
VIEWS = {  # what is stored beside the last four layers of the evaluation view
    "one layer": ("--layers", "1"),
    "float32": ("--dtype", "float32"),
    "bf16": ("--precision", "bf16"),
    "context": ("--which", "context"),
    "bicubic 48": ("--interpolation", "bicubic", "--image-size", "48"),
    "squash": ("--crop", "squash"),
    "squash 48": ("--crop", "squash", "--image-size", "48"),
    "flip": ("--views", "2", "--augment", "flip", "--crop", "squash"),
    "rrc-flip": ("--views", "2", "--augment", "rrc-flip"),
}
PROBES = {
    "knn": ("ijepa",),
    "logistic": ("ijepa", "msn", "msn-5-shot", "dinov2"),
    "few-shot": ("ijepa", "msn"),
    "linear": ("ijepa", "vissl-cifar100", "vissl-places205", "vissl-inat18", "vissl-in1k",
               "vissl-in1k-lars", "paper-in1k-lars", "vissl-clevr-count", "vissl-clevr-dist",
               "mae-lars", "mae-lars-50", "dinov2-linear"),
}  # fmt: skip
FINETUNED = {
    "imagenet-1pct": ("--subset", "50%"),
    "imagenet-1pct-huge": ("--subset", "3-per-class", "--set", "holdout=0.2"),
    "imagenet-full": ("--set", "batch_size=16", "--set", "drop_path=0.5"),
}
BEIT = {"use_shared_relative_position_bias": True, "use_mean_pooling": False}
DECODER = ("image_px=8", "channels=[8,16]", "batch_size=16", "statistics_images=32",
           "sampling_steps=3", "evaluated_images=8")  # fmt: skip
TO = ("ours", "published", "timm", "hf")
WORK = Path()  # a new folder, where this process stands: pictures show relative paths


# What is recorded, part by part.


def shards() -> Values:
    """Keys, labels and image bytes, as any reader of tars finds them."""
    yield from sample_values(scenes())
    folder, archive, table = pictures(), WORK / "pictures.tar", WORK / "pictures" / "list.csv"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, ".")
    with table.open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["path", "split", "colour"])
        names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*/*"))
        rows.writerows([name, name.split("/")[0], n % 3] for n, name in enumerate(names))
    sources: dict[str, tuple[object, tuple[str, ...]]] = {
        "folder": (folder, ()),
        "resized": (folder, ("--resize", "16", "--exif", "rotate")),
        "one split": (folder / "train", ("--val-fraction", "0.25", "--shuffle")),
        "small shards": (folder, ("--shard-bytes", "20000", "--split", "train")),
        "archive": (archive, ()),
        "list": (table, ()),
        "webdataset": (f"webdataset:{scenes()}/val-000000.tar", ()),
    }
    for name, (source, options) in sources.items():
        ijepa("shard", source, out := WORK / f"shards {name}", "--workers", "0", *options)
        yield from prefixed(name, sample_values(out))


def masks() -> Values:
    """How many patches are seen and predicted, and how evenly, over 20 batches of each recipe."""
    asked = {
        name: ("scenes-mini", ("masks.min_keep=4", *settings)) for name, settings in MASKS.items()
    }
    asked |= {name: (name, ()) for name in ("in1k_vith14_ep300", "table10_1-target")}
    for name, (recipe, settings) in asked.items():
        found = ijepa("visualize", "masks", "--recipe", recipe, "--out", WORK / f"masks {name}.png",
                      "--batches", 20, *overrides("data.batch_size=16", *settings))  # fmt: skip
        yield from prefixed(name, numbers(found.get("figures", found)))


def pretrain() -> Values:
    """All that a run writes down of each step, but for times and rates."""
    for name in RUNS:
        yield from prefixed(name, metric_values(run(name)))
    base = ("pretrain", "--recipe", "scenes-mini", "--data", scenes(), *CPU)
    for name, options in HOW.items():
        ijepa(*base, "--out", out := WORK / f"run {name}", *overrides(*TINY), *options)
        yield from prefixed(name, metric_values(out))
    held = "hold then cool"
    started = {"init": ((), "--init", run()), "prolonged": (RUNS[held], "--prolong", run(held))}
    for name, (more, *options) in started.items():
        settings = (*TINY, *more, "optimization.epochs=3")
        ijepa(*base, "--out", out := WORK / f"run {name}", *overrides(*settings), *options)
        yield from prefixed(name, metric_values(out))
    settings = (*TINY, "optimization.epochs=12")
    resumed = (*base, "--out", WORK / "run resumed", *overrides(*settings),
               "--checkpoint-seconds", "0.06")  # fmt: skip
    stop_early(resumed)
    ijepa(*resumed)
    yield from prefixed("resumed", metric_values(WORK / "run resumed"))
    for file in sorted(run().rglob("last.pt")):
        yield from prefixed("weights", tensor_values(file))


def features() -> Values:
    """Features, labels and keys of every kind of encoder that needs no network."""
    for name in VIEWS:
        yield from prefixed(f"views {name}", feature_values(extracted("run", "val", name)))
    for name in encoders():
        yield from prefixed(f"encoder {name}", feature_values(extracted(name, "val")))
    for name in ("mae", "ibot", "hf ijepa"):
        yield from prefixed(f"{name} 64", feature_values(extracted(name, "val", "squash 48")))
    for name in ("run", "pixels"):
        yield from prefixed(f"diagnose {name}", numbers(diagnosed(name)))


def probes() -> Values:
    """Scores, their intervals, what was chosen, and which images are right."""
    train, test = extracted("run", "train"), extracted("run", "val")
    cropped = extracted("run", "train", "rrc-flip"), test
    squashed = extracted("run", "train", "flip"), extracted("run", "val", "squash")
    for probe, protocols in PROBES.items():
        for protocol in protocols:
            published = squashed if "clevr" in protocol else cropped
            pair = published if probe == "linear" and protocol != "ijepa" else (train, test)
            yield from scored(probe, protocol, *pair)
    for scale in ("columns", "rows", "none"):
        yield from scored("logistic", "ijepa", train, test, "--scale", scale)
    beside = ("--baseline-train", extracted("pixels", "train"),
              "--baseline-test", extracted("pixels", "val"))  # fmt: skip
    for probe in PROBES:
        yield from scored(probe, "ijepa", train, test, *beside)
    subset = WORK / "subset.txt"
    with h5py.File(train) as file:
        subset.write_bytes(b"\n".join(file["keys"][::2]))
    yield from scored("few-shot", "ijepa", train, test, "--subset", subset)
    out = WORK / "low-level"
    ijepa("probe", "low-level", "--train", squashed[0], "--test", squashed[1], "--out", out,
          "--device", "cpu")  # fmt: skip
    for label in ("count", "dist"):
        yield from prefixed(f"low-level {label}", score_values(out / f"{label}.json"))


def finetune() -> Values:
    """Losses and scores of each protocol, and of encoders of others."""
    named = {protocol: ("run", protocol, options) for protocol, options in FINETUNED.items()}
    named |= {
        name: (name, "imagenet-1pct", ()) for name in ("mae", "data2vec", "hf ijepa", "random")
    }
    quick = overrides("epochs=2", "warmup_epochs=0.5", "lr=1e-3", "batch_size=32")
    for name, (encoder, protocol, options) in named.items():
        out = WORK / f"finetuned {name}"
        ijepa("finetune", "--encoder", encoders()[encoder], "--data", scenes(), "--out", out,
              "--label", "count", "--protocol", protocol, *quick, *options, *CPU)  # fmt: skip
        yield from prefixed(name, metric_values(out))
        yield from prefixed(name, score_values(out / "result.json"))


def figures() -> Values:
    """The numbers that stand beside pictures."""
    of_run = ("--encoder", run(), "--data", scenes(), "--images", 4, "--device", "cpu")
    stored = ("--features", extracted("run", "val"), "--data", scenes(), "--label", "count")
    asked = {
        "pca": of_run,
        "retrieval": (*of_run, "--store-images", 64, "--measured", 32),
        "neighbors": stored,
    }
    for name, words in asked.items():
        found = ijepa("visualize", name, *words, "--out", WORK / f"{name}.png")
        yield from prefixed(name, numbers(found))


def decoder() -> Values:
    """Losses, what samples look like, and how honest they are."""
    for condition in ("targets", "predictions"):
        out = WORK / f"decoder {condition}"
        found = ijepa("train-decoder", "--encoder", run(), "--data", scenes(), "--out", out,
                      "--condition", condition, "--steps", 8, *CPU,
                      *overrides(*DECODER))  # fmt: skip
        yield from prefixed(condition, metric_values(out))
        yield from prefixed(f"{condition} measured", numbers(found))
        picture = WORK / f"decoder {condition}.png"
        ijepa("visualize", "predictions", "--encoder", run(), "--decoder", out, "--data", scenes(),
              "--out", picture, "--images", 2, "--device", "cpu")  # fmt: skip
        with Image.open(picture) as image:
            yield f"{condition}/picture", digest(np.asarray(image))


def convert() -> Values:
    """Every tensor of a run in every format, and back."""
    for to in TO:
        yield from prefixed(f"run to {to}", tensor_values(converted(run(), to)))
    for first, then in (("published", "ours"), ("timm", "published"), ("hf", "timm")):
        both = tensor_values(converted(converted(run(), first), then))
        yield from prefixed(f"{first} to {then}", both)
    yield from prefixed("layers", tensor_values(converted(run("layers"), "published")))


def recipes() -> Values:
    """Every setting of every recipe, its defaults included."""
    folder = ROOT / "ijepa" / "recipes"
    for name in sorted(path.stem for path in folder.glob("*.yaml")):
        yield from prefixed(name, leaves(yaml.safe_load(told("recipes", name))))


PARTS = {part.__name__: part for part in (
    shards, masks, pretrain, features, probes, finetune, decoder, figures, convert, recipes,
)}  # fmt: skip


# What parts share; each is made once, when it is first asked for.


@functools.cache
def scenes() -> Path:
    """64 + 48 drawn scenes of 64 pixels, with three labels."""
    ijepa("shard", "scenes:train=64,val=48", WORK / "scenes", "--workers", "0")
    return WORK / "scenes"


@functools.cache
def pictures() -> Path:
    """Class folders of all the ways in which pixels are commonly written."""
    rng, folder = np.random.default_rng(0), WORK / "pictures"
    forms = {"png": "RGB", "jpg": "RGB", "bmp": "RGB", "webp": "RGB", "tif": "RGB", "gif": "P",
             "L.png": "L", "RGBA.png": "RGBA", "P.png": "P", "CMYK.jpg": "CMYK", "1.png": "1",
             "LA.png": "LA", "16.png": "I;16"}  # fmt: skip
    for split, name, (end, mode) in itertools.product(("train", "val"), ("a", "b"), forms.items()):
        path = folder / split / name / f"{name}-{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 2**16, (24, 20), dtype=np.uint16))
        else:
            image = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).convert(mode)
        turned = Image.Exif()
        turned[0x0112] = 6  # orientation: a quarter
        image.save(
            path.with_name(path.name.replace("-", ".")), **{"exif": turned} if end == "jpg" else {}
        )
    return folder


@functools.cache
def run(name: str = "multiblock symmetric") -> Path:
    """A finished pretraining of these settings."""
    ijepa("pretrain", "--recipe", "scenes-mini", "--data", scenes(), "--out",
          out := WORK / f"run {name}", *overrides(*TINY, *RUNS[name]), *CPU)  # fmt: skip
    return out


@functools.cache
def converted(source: Path, to: str) -> Path:
    """Weights in another format."""
    ijepa("convert", source, out := WORK / f"{source.name} to {to}", "--to", to)
    return out


@functools.cache
def encoders() -> dict[str, object]:
    """What `--encoder` takes, by a name that does not change."""
    vit, beit = foreign.drawn(foreign.vit_shapes()), foreign.drawn(foreign.beit_shapes())
    shared = foreign.drawn(foreign.beit_shapes(shared=True))
    other = foreign.drawn(foreign.vit_shapes(), seed=9)
    files = {
        "mae": {"model": vit},
        "dino": {"teacher": named(vit, "backbone."), "student": named(other, "module.backbone.")},
        "ibot": {"state_dict": vit},
        "msn": {"target_encoder": named(vit, "module."), "encoder": named(other, "module.")},
        "cae": {"model": named(beit, "encoder.")},
        "data2vec": {"model": shared},
        "byol": foreign.drawn(foreign.resnet_shapes(foreign.byol_names)),
        "simclrv2": {"resnet": foreign.drawn(foreign.resnet_shapes(foreign.simclr_names))},
    }
    found: dict[str, object] = {
        "run": run(),
        "run of layers": run("layers"),
        "checkpoint": next(run().rglob("epoch-0001.pt")),
        "random run": f"random:{run()}",
        "random": "random:32x2x2/8@64",
        "pixels": "pixels",
        "ours": converted(run(), "ours"),
        "published": f"published:32x4x2@{converted(run(), 'published')}",
        "hf ijepa": f"hf:{converted(run(), 'hf')}",
    }
    for name, body in files.items():
        torch.save(body, WORK / f"{name}.pth")
        found[name] = f"{name}:{WORK / name}.pth"
    return found | timm_encoders() | hf_encoders()


def timm_encoders() -> dict[str, object]:
    """Two of timm's models, with weights drawn here."""
    import timm  # seconds, which other parts do not wait for
    from safetensors.torch import save_file

    found: dict[str, object] = {}
    models = {"vit": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "resnet": "resnet18.a1_in1k"}
    for name, model in models.items():
        shapes = {key: value.shape for key, value in timm.create_model(model).state_dict().items()}
        save_file(foreign.drawn(shapes, scale=0.02), WORK / f"{name}.safetensors")
        found[f"timm {name}"] = f"timm:{model}@{WORK / name}.safetensors"
    return found


def hf_encoders() -> dict[str, object]:
    """The families of transformers that are read, small, with weights drawn here."""
    import transformers  # likewise

    size = {"hidden_size": foreign.DIM, "num_hidden_layers": foreign.DEPTH,
            "num_attention_heads": foreign.HEADS, "intermediate_size": 4 * foreign.DIM,
            "image_size": foreign.SIDE_PX, "patch_size": foreign.PATCH_PX}  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, object] = {}
    for name in ("ViTMAE", "ViTMSN", "Data2VecVision", "Dinov2", "ViT"):
        own = BEIT if name == "Data2VecVision" else {}
        config = getattr(transformers, f"{name}Config")(**size, **own)
        model = getattr(transformers, f"{name}Model")(config)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        model.load_state_dict(foreign.drawn(shapes))
        model.save_pretrained(WORK / name)
        found[f"hf {name}"] = f"hf:{WORK / name}"
    return found


def named(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The same weights as part of something larger."""
    return {prefix + name: value for name, value in weights.items()}


@functools.cache
def extracted(encoder: str, split: str, view: str = "") -> Path:
    """Features of a split; timm's models, which are made for 224 pixels, see 64."""
    out = WORK / f"{encoder} {split} {view}.h5"
    size = ("--image-size", "64") if encoder.startswith("timm") else ()
    layers = () if view == "one layer" else ("--layers", "1" if encoder in ONE_LAYER else "2")
    ijepa("extract", "--encoder", encoders()[encoder], "--data", scenes(), "--split", split,
          "--out", out, *CPU, *size, *layers, *VIEWS.get(view, ()))  # fmt: skip
    return out


ONE_LAYER = ("pixels", "byol", "simclrv2", "timm resnet")


def diagnosed(encoder: str) -> dict[str, Any]:
    """The state of features."""
    return ijepa("features", "diagnose", extracted(encoder, "val"), "--label", "count")


def scored(probe: str, protocol: str, train: Path, test: Path, *options: object) -> Values:
    """Fit a probe and read what it says."""
    words = [str(one).lstrip("-") for one in options if not isinstance(one, Path)]
    name = " ".join([probe, protocol, *words])
    scheme = () if protocol == "ijepa" else ("--protocol", protocol)
    ijepa("probe", probe, *scheme, "--label", "count", "--train", train, "--test", test,
          "--out", out := WORK / f"{name}.json", *options, "--device", "cpu")  # fmt: skip
    yield from prefixed(name, score_values(out))


# The command line.


def told(*words: object) -> str:
    """What a command says on stdout; whatever it does, it does in this process."""
    sys.argv = ["ijepa", *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module("ijepa_cli", run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise SystemExit(f"{' '.join(sys.argv)}\n{err.getvalue()}") from None
    return out.getvalue()


def ijepa(*words: object) -> dict[str, Any]:
    """The result of a command, read from its JSON."""
    found: dict[str, Any] = json.loads(told(*words, "--json"))
    return found


def stop_early(words: tuple[object, ...]) -> None:
    """Start a run of its own process, and end it by SIGTERM after some steps."""
    command = [sys.executable, "-m", "ijepa_cli", *map(str, words)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as started:
        while started.poll() is None:
            if any(path.stat().st_size > 900 for path in WORK.rglob("run resumed*/metrics.jsonl")):
                started.terminate()
                break
            time.sleep(0.01)
    if started.returncode != 143:
        raise SystemExit(f"The run that was to be stopped ended otherwise: {started.returncode}.")


def overrides(*settings: str) -> list[str]:
    """As `--set` takes them."""
    return [word for setting in settings for word in ("--set", setting)]


# How files are read: the only lines that know their form.


def sample_values(folder: Path) -> Values:
    """Of each split of a shard set: keys, labels and image bytes, in the order of the tars."""
    samples: dict[str, dict[str, dict[str, bytes]]] = {}
    for path in sorted(folder.glob("*.tar")):
        split = samples.setdefault(path.name.rsplit("-", 1)[0], {})
        with tarfile.open(path) as tar:
            for member in tar:
                parent, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                split.setdefault(f"{parent}/{key}", {})[kind] = tar.extractfile(member).read()  # type: ignore[union-attr]  # only files
    for split_name, split in samples.items():
        labels = [json.loads(sample.pop("json"))["labels"] for sample in split.values()]
        yield f"{split_name}/keys", digest_of(len(split), *split)
        yield f"{split_name}/labels", digest_of(len(labels), json.dumps(labels, sort_keys=True))
        images = [
            (kind, body) for one in split.values() for kind, body in one.items() if kind != "cls"
        ]
        yield f"{split_name}/images", digest_of(len(images), *images)


def metric_values(folder: Path) -> Values:
    """Of each column of metrics.jsonl that is no time or rate."""
    columns: dict[str, list[float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            if "second" not in name and "flops" not in name:
                columns.setdefault(name, []).append(value)
    for name, column in columns.items():
        yield name, f"{digest_of(len(column), *map(repr, column))} last {column[-1]!r}"


def feature_values(path: Path) -> Values:
    """Of a feature file: numbers, labels, keys and views."""
    with h5py.File(path) as file:
        yield "features", digest(file["features"][:])
        columns = {"keys": file["keys"], **file["labels"]}
        columns |= {"view": file["view"]} if "view" in file else {}
        for name, column in columns.items():
            yield name, digest_of(len(column), *map(str, column[:].tolist()))


def score_values(path: Path) -> Values:
    """Of a result: every score with its interval, choices and right answers."""
    scores = json.loads(path.read_text())
    yield "chance", scores[0]["chance"]
    for number, score in enumerate(scores):
        name = f"{number} {score['setting']}".strip()
        for value in ("top1", "mean_class", "draws_std", "best_on_test", "p_value"):
            yield f"{name}/{value}", score[value]
        for value in ("top1_interval", "mean_class_interval"):
            yield from prefixed(f"{name}/{value}", leaves(score[value]))
        yield from prefixed(f"{name}/choices", leaves(score["choices"]))
        yield f"{name}/right", " ".join(score["correct"])


def tensor_values(path: Path) -> Values:
    """Of a file of weights, or the file in a folder: every tensor, by where it stands."""
    path = next(path.glob("*.safetensors")) if path.is_dir() else path
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # of two formats alone

        body = load_file(path)
    else:
        body = torch.load(path, weights_only=True, map_location="cpu")
        body = body.get("model", body)
    for name, tensor in leaves(body):
        if isinstance(tensor, torch.Tensor):
            yield name, digest(tensor.numpy())


# Values.


def leaves(body: object, name: str = "") -> Values:
    """What is not itself a list or a mapping, by the path that leads there."""
    if not isinstance(body, dict | list):
        yield name, body
        return
    for key, value in body.items() if isinstance(body, dict) else enumerate(body):
        yield from leaves(value, f"{name}/{key}" if name else str(key))


def numbers(body: object) -> Values:
    """The leaves that are numbers."""
    yield from ((name, value) for name, value in leaves(body) if type(value) in (int, float))


def prefixed(prefix: str, values: Values) -> Values:
    """The same values, one level down."""
    yield from ((f"{prefix}/{name}" if name else prefix, value) for name, value in values)


def digest(array: np.ndarray[Any, Any]) -> str:
    """Type, shape and mean of an array, and its bytes."""
    total = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"{array.dtype} {array.shape} mean {array.mean(dtype=np.float64):.6g} {total}"


def digest_of(count: int, *parts: object) -> str:
    """How many there are, and what they are."""
    return f"{count} {hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def record(out: Path, parts: list[str]) -> int:
    """Write the values of some parts."""
    found: dict[str, object] = {}
    for part in parts:
        start = time.process_time()
        for name, value in prefixed(part, PARTS[part]()):
            if name in found:
                raise SystemExit(f"{name} is recorded twice.")
            found[name] = value
        print(
            f"{part}: {len(found):,} values, {time.process_time() - start:.0f} s", file=sys.stderr
        )
    out.write_text(json.dumps(found, indent=0) + "\n")
    return 0


def compare(before: Path, after: Path, parts: list[str]) -> int:
    """Print what differs: 1 if anything does."""
    bodies = [json.loads(path.read_text()) for path in (before, after)]
    old, new = ({k: v for k, v in body.items() if k.split("/")[0] in parts} for body in bodies)
    differing = [name for name in old | new if not same(old.get(name, "-"), new.get(name, "-"))]
    for name in differing:
        print(f"{name}\n  before {old.get(name, '-')}\n  after  {new.get(name, '-')}")
    print(f"{len(differing):,} of {len(old | new):,} values differ.")
    return int(bool(differing) or not old)


def same(before: object, after: object) -> bool:
    """Equal, where NaN equals NaN."""
    both_nan = all(isinstance(one, float) and math.isnan(one) for one in (before, after))
    return both_nan or (type(before) is type(after) and before == after)


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("files", nargs="+", type=Path, help="one to write, or two to compare")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; all if none")
    args = parser.parse_args()
    parts = args.part or list(PARTS)
    if args.what == "compare":
        return compare(*args.files, parts)
    out = args.files[0].resolve()
    with tempfile.TemporaryDirectory(prefix="goldens-") as folder:
        os.chdir(folder)
        return record(out, parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
