"""The visit to a GPU: its budget, its parts' independence, its rehearsal on a CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ijepa.jepa.model import build_ijepa
from ijepa.recipes import load_recipe

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "benchmarks" / "gpu"), str(ROOT / "benchmarks")]  # scripts, not a package

import bench_train_step  # noqa: E402  # found by that path
import parts  # noqa: E402  # found by that path
import visit  # noqa: E402  # found by that path
from session import Command, Session, append_result, read_results  # noqa: E402  # found by that path

weights = st.dictionaries(st.sampled_from(list(visit.SECONDS)), st.floats(1, 1e3), min_size=1)


def run_fakes(tmp_path, scripts, seconds):
    """Run Python snippets as parts; returns the lines that tell how each part ended."""
    work = tmp_path / "work"
    (work / "logs").mkdir(parents=True)
    out = tmp_path / "out"
    out.mkdir()
    visit.run_parts(
        dict.fromkeys(scripts, 1.0),
        lambda part, _: [sys.executable, "-c", scripts[part]],
        out,
        work,
        time.time() + seconds,
    )
    return {line["part"]: line for line in read_results(out) if line["what"] == "part"}


def test_a_part_that_crashes_leaves_its_reason_and_the_next_one_runs(tmp_path):
    ended = run_fakes(tmp_path, {"first": "raise SystemExit('no memory')", "second": ""}, 20)
    assert (ended["first"]["status"], ended["first"]["last"]) == ("failed", "no memory")
    assert ended["second"]["status"] == "ok"


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(visit, "KILL_SECONDS", 0.5)
    mark = tmp_path / "survivor"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    hang = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); print('waiting', flush=True);"
        "time.sleep(60)"
    )
    began = time.monotonic()
    ended = run_fakes(tmp_path, {"first": hang, "second": ""}, 3)
    assert time.monotonic() - began < 15
    assert (ended["first"]["status"], ended["first"]["last"]) == ("timeout", "waiting")
    assert ended["second"]["status"] == "ok"
    time.sleep(3)
    assert not mark.exists()


@given(weights=weights, left=st.floats(-10, 1e3))
def test_shares_of_all_parts_add_up_to_the_time_that_is_left(weights, left):
    names, given_out, rest = list(weights), 0.0, left
    for place, part in enumerate(names):
        seconds = visit.share(part, rest, {name: weights[name] for name in names[place:]})
        assert seconds >= 0
        given_out, rest = given_out + seconds, rest - seconds
    assert given_out == pytest.approx(max(left, 0.0))


def test_time_that_a_part_leaves_goes_to_those_behind_it():
    behind = {"full": 2.0, "score": 1.0}
    assert visit.share("full", 90, behind) == 60
    assert visit.share("full", 120, behind) == 80


def test_a_whole_visit_fits_between_start_and_end_of_one_call():
    assert sum(visit.SECONDS.values()) + visit.PACK_SECONDS <= visit.VISIT_SECONDS


def test_the_table_shows_every_number_and_the_reason_of_a_failure(tmp_path):
    append_result(tmp_path, "bench", "H/14 eager", "ok", images_per_second=1234.567)
    append_result(tmp_path, "bench", "H/14 plain", "failed", last="CUDA out of memory")
    (tmp_path / "results.jsonl").open("a").write('{"part": "cut off')
    shown = visit.table(read_results(tmp_path)).splitlines()
    assert len(shown) == 3
    assert "H/14 eager  ok" in shown[1]
    assert "images_per_second 1,235" in shown[1]
    assert shown[2].endswith("[CUDA out of memory]")


def test_what_is_too_large_to_travel_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(visit, "LARGEST_BYTES", 1000)
    out, work = tmp_path / "out", tmp_path / "work"
    (work / "logs").mkdir(parents=True)
    out.mkdir()
    (work / "train.h5").write_bytes(bytes(1001))
    (work / "val.h5").write_bytes(bytes(1000))
    visit.pack(out, work)
    assert not (out / "train.h5").exists()
    assert (out / "val.h5").exists()
    [refused, _] = read_results(out)
    assert (refused["what"], refused["status"]) == ("train.h5", "failed")


def test_numbers_are_found_in_a_command_s_output_whatever_is_printed_before(tmp_path):
    session = Session("smoke", None, tmp_path, tmp_path, time.time() + 60, rehearse=True)
    (tmp_path / "logs").mkdir()
    noisy = "import sys; print('a library says hello'); print('{\\n \"a\": [{\"b\": 5}]\\n}')"
    noisy += "; import ijepa; bars = ijepa.Bars(lines=True)"
    noisy += "; [bars('pretrain images', n, 9) for n in (0, 3, 9)]"
    session_start = f"import subprocess, sys; {noisy}"
    command = Command("noisy", ["pretrain"], {"five": "a.0.b", "none": "a.3.c"})

    def start(_):
        log = session.log("noisy")
        with log.open("wb") as stderr, log.with_suffix(".json").open("wb") as stdout:
            return subprocess.Popen(
                [sys.executable, "-c", session_start], stdout=stdout, stderr=stderr
            )

    object.__setattr__(session, "start", start)
    assert session.ijepa(command).status == "ok"
    [line] = read_results(tmp_path)
    assert (line["five"], line["images_per_second"] > 0, "none" in line) == (5, True, False)


@pytest.mark.parametrize("name", parts.VARIANTS)
def test_every_variant_of_the_sweep_is_a_setting_of_the_recipe(name):
    for recipe, variants in (
        ("imagenette-vits16", parts.VARIANTS),
        ("scenes-mini", parts.MINI_VARIANTS),
    ):
        config = load_recipe(recipe, variants[name])
        assert (config != load_recipe(recipe, [])) == (name != "A")


def test_the_winner_has_the_best_neighbours_or_is_the_most_trusted_of_those_alike():
    assert parts.pick_winner({"A": 0.40, "B": 0.55, "C": 0.50}) == "B"
    assert parts.pick_winner({"A": 0.40, "B": 0.55, "C": 0.545}) == "C"
    assert parts.pick_winner({"A": 0.40}) == "A"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("pytorch_flash::flash_fwd_kernel<Traits<64, cutlass::bfloat16_t>>", "attention"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer and EMA"),
        ("cuComputeGradGammaBeta<float, float>", "norms"),
        ("triton_poi_fused_addmm_gelu_3", "GELU"),
        ("nvjet_tst_128x256_64x4", "products of matrices"),
    ],
)
def test_kernels_of_a_gpu_are_counted_as_what_they_do(kernel, kind):
    assert bench_train_step._kind(kernel) == kind


def test_variants_are_compared_where_all_have_seen_as_many_images():
    def looks(*pairs):
        return [{"images": images, "neighbour_accuracy": share} for images, share in pairs]

    first = {"neighbour_accuracy": 0.1}  # of random weights, which have seen none
    found = {"A": [first, *looks((50, 0.3), (100, 0.6))], "B": [first, *looks((50, 0.4))]}
    assert parts.at_equal_images(found) == (50, {"A": 0.3, "B": 0.4})


def test_a_variant_that_computes_more_gets_fewer_epochs(tmp_path):
    session = Session("full", None, tmp_path, tmp_path, 0.0, rehearse=False)
    costs = {name: parts.relative_cost(session, sets) for name, sets in parts.VARIANTS.items()}
    assert costs["A"] == costs["B"] == 1.0
    assert costs["D"] > 1.05
    assert costs["E"] < 0.8


def test_epochs_fit_the_time_and_are_never_more_than_the_goal():
    assert parts.fitting_epochs(190, 5000, 9469) == 100
    assert parts.fitting_epochs(1, 100, 9469) == 1
    assert parts.fitting_epochs(1e6, 5000, 9469) == parts.FULL_EPOCHS


@pytest.mark.parametrize("init", ["published", "xavier"])
def test_networks_drawn_on_the_device_have_the_weights_of_the_product(init):
    config = load_recipe(
        "scenes-mini", [f"encoder.init={init}", "encoder.position_scale=0.5", "seed=3"]
    )
    ours = bench_train_step.draw_networks(config, torch.device("cpu")).state_dict()
    for name, expected in build_ijepa(config).state_dict().items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=0, msg=name)


def test_a_workload_of_varying_masks_counts_the_mean_cost_of_its_lengths(monkeypatch):
    monkeypatch.setattr(bench_train_step, "VARYING_MASKS", 6)
    config = bench_train_step.config_of(bench_train_step.Size("32x2x2", 8, 64, 16, 1, 4, 4), 4)
    work = bench_train_step.prepare(config, vary=True)
    alone = [work._replace(masks=[masks]).flops for masks in work.masks]
    assert len({masks.context.shape[1] for masks in work.masks}) > 1
    assert work.flops == pytest.approx(sum(alone) / len(alone))


@pytest.mark.slow
def test_the_rehearsal_runs_every_part_and_packs_what_may_travel(tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, ROOT / "benchmarks/gpu/visit.py", "--rehearse", "--out", out]
    done = subprocess.run([*words, "--seconds", "900"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    ended = {line["part"]: line["status"] for line in lines if line["what"] == "part"}
    assert ended == dict.fromkeys([*visit.SECONDS, "pack"], "ok"), done.stdout
    failed = {line["what"] for line in lines if line["status"] != "ok"}
    assert not failed, done.stdout
    files = list(out.iterdir())
    assert len(files) == 8
    assert all(path.stat().st_size <= visit.LARGEST_BYTES for path in files)
    assert "score" in (out / "table.txt").read_text()
