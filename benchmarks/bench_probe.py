"""Probes: many heads at once against one, and against modules; logistic regression by each solver.

    python benchmarks/bench_probe.py [heads] [logistic] [--rows 100000] [--classes 1000]
        [--epochs 1]

`heads` trains the 16 heads of ImageNet's protocol on rows x 4 x 768 features that stand in a
feature store; the plain side is sixteen modules, traced and stepped one by one on batches of the
same size, for one epoch, features in memory. `ratio_flops` is what products of matrices alone let
one expect of 16 heads against the largest; `gflops_...` are the products' part of the work over all
of the time, beside the speed of one such product alone, by `torch.nn.functional.linear` and by
ours. `logistic` fits 20,000 x 768 features of 100 classes; each solver of
scikit-learn gets as many iterations as it needs to come within a ten-thousandth of our loss.
"""

import argparse
import dataclasses
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from timing import emit, medians
from torch import nn

from ijepa.compute import computing, pick_linear
from ijepa.features.store import FeatureHeader, open_features
from ijepa.features.write import FeatureWriter, create_features
from ijepa.probes.arrays import LabelledRows
from ijepa.probes.linear import train_heads
from ijepa.probes.logistic import fit, regression
from ijepa.probes.protocols import LINEAR_PROTOCOLS, LOGISTIC_PROTOCOLS, Head, LinearProtocol
from ijepa.progress import silent

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

LAYERS, DIM = 4, 768
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
SOLVERS = ("lbfgs", "newton-cg", "sag", "saga")


def main() -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser(description="Probes against plain ways of fitting them.")
    parser.add_argument("what", nargs="*", default=["heads", "logistic"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    if "heads" in arguments.what:
        with tempfile.TemporaryDirectory() as folder:
            heads(Path(folder), arguments.rows, arguments.classes, arguments.epochs)
    if "logistic" in arguments.what:
        logistic(rows=20_000, classes=100)


def heads(folder: Path, rows: int, classes: int, epochs: int) -> None:
    """16 heads, the largest head alone, and 16 plain modules."""
    labels = np.random.default_rng(0).integers(classes, size=rows)
    store = open_features(_store(folder / "f.h5", labels), check_numbers=False)
    data = LabelledRows(store.values, labels, np.arange(rows)[:, np.newaxis])
    whole = dataclasses.replace(LINEAR_PROTOCOLS["vissl-in1k-lars"], epochs=epochs)
    largest = next(head for head in whole.heads if head.features == "concat")
    one = dataclasses.replace(whole, heads=(largest,))
    few = data.take(np.arange(min(rows, 4096)))
    _seconds(few, one)  # warm-up
    product, plain_product = _gflops(classes)
    seconds = {"one": _seconds(data, one), "sixteen": _seconds(data, whole)}
    seconds["plain"] = epochs * _plain_seconds(data, whole, classes)
    flops = sum(1 if head.features == "concat" else 1 / LAYERS for head in whole.heads)
    work = epochs * rows * 4 * classes * LAYERS * DIM / 1e9  # of the largest head: GFLOP, both ways
    emit(
        "probe_heads",
        features=f"{rows:,} x {LAYERS} x {DIM}, {classes} classes, {epochs} epochs",
        gflops_product=product,
        gflops_plain_product=plain_product,
        gflops_one_head=work / seconds["one"],
        gflops_sixteen_heads=work * flops / seconds["sixteen"],
        seconds_one_head=seconds["one"],
        seconds_sixteen_heads=seconds["sixteen"],
        seconds_plain_sixteen=seconds["plain"],
        ratio_to_one=seconds["sixteen"] / seconds["one"],
        ratio_flops=flops,
        ratio=seconds["plain"] / seconds["sixteen"],
    )


def _store(path: Path, labels: Array) -> Path:
    header = FeatureHeader(
        encoder="noise", weights_sha256="", which="target", layers=tuple(range(LAYERS)),
        pooling="", image_px=224, transform="", data_fingerprint="", split="train",
        class_names={"class": None}, fingerprint="",
    )  # fmt: skip
    rows, rng = len(labels), np.random.default_rng(0)
    keys = [f"{number:08d}" for number in range(rows)]
    create_features(
        path, header, (rows, LAYERS, DIM), "float16", keys=keys, labels={"class": labels},
        batch_rows=4096,
    )  # fmt: skip
    writer = FeatureWriter(path)
    for batch, first in enumerate(range(0, rows, 4096)):
        ids = np.arange(first, min(first + 4096, rows), dtype=np.uint64)
        values = rng.standard_normal((len(ids), LAYERS, DIM), dtype=np.float32)
        writer.write(batch, values, ids)
    writer.finish()
    return path


def _seconds(data: LabelledRows, rule: LinearProtocol) -> float:
    start = time.perf_counter()
    train_heads(data, rule, 0, DEVICE, silent)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def _gflops(classes: int) -> tuple[float, float]:
    """Speed of logits of the largest head alone, ours and by `linear`."""
    inputs = torch.randn(4096, LAYERS * DIM, device=DEVICE)
    weight = torch.randn(classes, LAYERS * DIM, device=DEVICE)
    kernel = pick_linear(DEVICE, len(inputs), LAYERS * DIM)

    def chosen() -> None:
        with computing(DEVICE, linear=kernel):
            F.linear(inputs, weight)

    taken = medians(chosen, lambda: F.linear(inputs, weight))
    ours, plain = (2 * inputs.numel() * classes / 1e9 / seconds for seconds in taken)
    return ours, plain


def _plain_seconds(data: LabelledRows, rule: LinearProtocol, classes: int) -> float:
    """Each head a module with an optimizer of its own; features wholly in memory."""
    values = torch.from_numpy(data.features.copy()).to(DEVICE)
    labels = torch.from_numpy(data.labels).to(DEVICE)
    models = [_module(head, classes).to(DEVICE) for head in rule.heads]
    optimizers = [torch.optim.SGD(model.parameters(), 0.01, 0.9) for model in models]
    start = time.perf_counter()
    for rows in torch.randperm(len(labels)).to(DEVICE).split(rule.batch):
        batch = values[rows].float()
        inputs = {"last": batch[:, -1], "concat": batch.flatten(1)}
        for head, model, optimizer in zip(rule.heads, models, optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[head.features]), labels[rows]).backward()
            optimizer.step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _module(head: Head, classes: int) -> nn.Module:
    dim = DIM * (LAYERS if head.features == "concat" else 1)
    linear = nn.Linear(dim, classes)
    return linear if head.norm == "none" else nn.Sequential(nn.BatchNorm1d(dim), linear)


def logistic(rows: int, classes: int) -> None:
    """Seconds to equal loss, for C = 0.01 on standardised clusters that overlap."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=rows)
    centres = 0.3 * rng.standard_normal((classes, DIM), dtype=np.float32)
    features = centres[labels] + rng.standard_normal((rows, DIM), dtype=np.float32)
    features = StandardScaler().fit_transform(features)
    strength = 0.01
    probe = regression(LOGISTIC_PROTOCOLS["ijepa"], strength, labels)
    start = time.perf_counter()
    fit(probe, features, labels, None)
    ours, loss = time.perf_counter() - start, _loss(probe, features, labels, strength)
    found = {
        solver: _seconds_to(
            loss, LogisticRegression(C=strength, solver=solver, tol=1e-8), features, labels
        )
        for solver in SOLVERS
    }
    equal = _seconds_to(
        loss, regression(LOGISTIC_PROTOCOLS["ijepa"], strength, labels), features, labels
    )
    emit(
        "probe_logistic",
        features=f"{rows:,} x {DIM}, {classes} classes",
        seconds=ours,
        loss=loss,
        seconds_to_equal_loss=equal,
        **{f"seconds_{solver}": seconds for solver, seconds in found.items()},
        ratio=min(found.values()) / equal,
    )


def _seconds_to(loss: float, probe: LogisticRegression, features: Array, labels: Array) -> float:
    """Of the cheapest run that comes as low; infinite if none does in 320 iterations.

    Each starts afresh and ends after so many iterations, whatever its own tolerance says.
    """
    for iterations in (10, 20, 40, 80, 160, 320):
        probe.set_params(max_iter=iterations)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(features, labels)
        seconds = time.perf_counter() - start
        if _loss(probe, features, labels, probe.C) <= loss * 1.0001:
            return seconds
        if seconds > 120:
            break
    return float("inf")


def _loss(probe: LogisticRegression, features: Array, labels: Array, strength: float) -> float:
    mean = log_loss(labels, probe.predict_proba(features))
    return float(mean + (probe.coef_**2).sum() / 2 / strength / len(labels))


if __name__ == "__main__":
    main()
