"""What is installed from a wheel works without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_has_all_that_the_stages_need(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run([*build, "-w", tmp_path, ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("ijepa_toolkit-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "packages")

    def run(*words):
        env = os.environ | {"PYTHONPATH": str(tmp_path / "packages"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "ijepa_cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "in1k_vith14_ep300" in run("recipes")
    assert "mae" in run("encoders")
    run("shard", "scenes:train=64,val=64,px=32", "set")
    for split in ("train", "val"):
        run("extract", "--encoder", "pixels", "--data", "set", "--split", split,
            "--out", f"{split}.h5")  # fmt: skip
    run("probe", "knn", "--train", "train.h5", "--test", "val.h5", "--out", "knn.json")
    run("visualize", "embedding", "--features", "val.h5", "--data", "set", "--method", "pca",
        "--out", "map.html")  # fmt: skip
    run("report", "knn.json", "map.html", "--out", "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
