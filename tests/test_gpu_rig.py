"""Faults that only a GPU would show, found without one: see `tests/fake_cuda`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cuda import runtime
from fake_cuda.claims import CACHES, FAMILIES, PROTOCOLS
from filelock import FileLock

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # the rig takes half a minute
GPU = "cuda:0"


@pytest.fixture(scope="session")
def rig(tmp_path_factory):
    """What the fake GPU has seen, by name; found once for all of pytest's workers."""
    reason = runtime.why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    found = folder / "gpu-rig.json"
    with FileLock(f"{found}.lock"):
        if not found.exists():
            command = [sys.executable, "-W", "ignore", "-m", "tests.fake_cuda", "claims"]
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            found.write_text(done.stdout)
    return json.loads(found.read_text())


def seen(rig, name):
    assert "error" not in rig[name], rig[name]["error"]
    return rig[name]["seen"]


def test_steps_of_the_visit_run_on_the_device_that_the_benchmark_names(rig):
    assert seen(rig, "steps of the visit")


def test_the_rig_sees_faults_of_each_kind(rig):
    found = seen(rig, "known faults")
    assert found["waits"] == [
        "copy from memory that is not pinned of 12 bytes, cpu to cuda",
        "blocking copy of 12 bytes, cpu to cuda",
        "blocking copy of 8 bytes, cpu to cuda",
        "blocking copy of 12 bytes, cuda to cpu",
        "value read from the GPU",
    ]
    assert found["hidden"] == ["blocking copy of 12 bytes, cpu to cuda"]
    assert "cuda:0" in found["mixed"]
    assert "cpu" in found["mixed"]


@pytest.mark.parametrize("family", [*FAMILIES, "in-parts"])
def test_a_training_step_stays_on_the_gpu_in_bfloat16_with_a_fused_optimizer(rig, family):
    found = seen(rig, f"training {family}")
    assert found["devices"] == [GPU]
    assert found["fused_adamw"]
    assert found["attention"]
    assert all(kernel.endswith(" bfloat16") for kernel in found["attention"])


@pytest.mark.parametrize("cache", CACHES)
def test_a_run_trains_checks_saves_and_resumes_on_a_gpu(rig, cache):
    found = seen(rig, f"whole run, cache {cache}")
    assert found == {
        "steps": 2,
        "devices": [GPU],
        "files": ["checkpoints/best.pt", "checkpoints/last.pt"],
    }


def test_the_decoded_cache_crops_on_the_gpu_without_pinning_or_waiting(rig):
    found = seen(rig, "decoded cache")
    assert found["steps"] == [0, 1, 2]
    assert found["devices"] == [GPU]
    assert found["shapes"] == [[8, 3, 224, 224]]
    assert found["findings"] == []


def test_features_are_extracted_on_the_gpu(rig):
    assert seen(rig, "extraction") == {"devices": [GPU], "dtypes": ["torch.float32"]}


def test_the_health_check_gives_all_its_numbers_on_a_gpu(rig):
    numbers = {"rankme", "feature_std", "mean_cosine", "lidar", "context_target_cosine"}
    assert set(seen(rig, "health check")) == numbers | {"neighbour_accuracy"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_linear_heads_train_and_predict_on_a_gpu(rig, protocol):
    assert seen(rig, f"linear heads {protocol}") == [GPU]


@pytest.mark.parametrize("what", ["fine-tuning", "decoder"])
def test_an_encoder_is_fine_tuned_and_a_decoder_trained_and_each_is_measured_on_a_gpu(rig, what):
    assert seen(rig, what) == 2


@pytest.mark.parametrize("what", ["training", "preparing"])
def test_neither_a_step_nor_making_its_inputs_makes_the_cpu_wait_for_the_gpu(rig, what):
    assert seen(rig, f"waits of {what}") == []


def test_attention_over_lengths_that_vary_never_plans_in_cudnn(rig):
    found = seen(rig, "attention of varying lengths")
    assert found["kernels"]
    assert not any("cudnn" in kernel for kernel in found["kernels"])


def test_attention_over_few_lengths_may_use_cudnn(rig):
    assert seen(rig, "attention of few lengths")["cudnn_allowed"]


@pytest.mark.parametrize("name", ["S", "H"])
def test_the_plan_predicts_the_peak_memory_of_a_step_within_a_tenth(rig, name):
    found = seen(rig, f"memory {name}")
    assert found["predicted"] == pytest.approx(found["peak"], rel=0.1), found


def test_each_rank_picks_its_own_device_before_it_joins_a_group_that_waits_an_hour(rig):
    assert seen(rig, "devices of ranks") == [[0, True], [1, True]]
