"""Data that many tests read, made once a session."""

import os

# Two pytest workers share two cores, so each computes on one; and so do the processes they start.
os.environ["OMP_NUM_THREADS"] = "1"  # read by torch, OpenBLAS and scikit-learn when imported

import signal
import sys
from pathlib import Path

import pytest
from gratings import write_gratings
from hypothesis import HealthCheck, settings

from ijepa.config import Runtime
from ijepa.recipes import load_recipe
from ijepa.shard import shard
from ijepa_cli.main import main

settings.register_profile(  # no claim depends on how busy the machine is
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")
os.environ["IJEPA_CPU_LINEAR"] = "torch"  # else each CPU has its own numbers, found by timing


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """A shard set of 256 + 64 noisy gratings in eight classes."""
    folder = tmp_path_factory.mktemp("gratings")
    write_gratings(folder / "images", "train", 256, seed=0)
    write_gratings(folder / "images", "val", 64, seed=1)
    shard(str(folder / "images"), folder / "shards", runtime=Runtime(workers=1))
    return folder / "shards"


@pytest.fixture(scope="session")
def tiny_config():
    """A run of 16 steps on `shards`, watched every 5."""
    return load_recipe(
        "cifar10",
        [
            "encoder.arch=32x2x2",
            "predictor.dim=16",
            "predictor.depth=1",
            "data.batch_size=32",
            "optimization.epochs=2",
            "optimization.warmup_epochs=0.5",
            "optimization.schedule=cosine",
            "optimization.ema=[0.996, 1.0]",
            "masks.num_targets=4",
            "watch.every_steps=5",
            "watch.num_images=32",
            "checkpoint_epochs=1",
        ],
    )


@pytest.fixture(scope="session")
def run(shards, tiny_config, tmp_path_factory) -> Path:
    """A finished tiny run."""
    from ijepa.pretrain import pretrain

    out = tmp_path_factory.mktemp("runs") / "tiny"
    pretrain(shards, out, tiny_config, Runtime(device="cpu", workers=0))
    return out


@pytest.fixture
def ijepa(monkeypatch, capsys):
    """Run `ijepa ARGUMENTS` in this process: exit code, stdout, stderr."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ijepa", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        output = capsys.readouterr()
        return code, output.out, output.err

    yield call
    signal.signal(signal.SIGTERM, before)  # else what later tests start would ignore it


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real images that IJEPA_TEST_DATA names."""
    folder = os.environ.get("IJEPA_TEST_DATA")
    if not folder:
        pytest.skip("IJEPA_TEST_DATA names no folder of real images")
    return Path(folder)
