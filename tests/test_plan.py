"""What commands would do, without doing it; what it would cost; the graph of all tables."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ijepa.config import Config
from ijepa.errors import IjepaError
from ijepa.forecast.cost import Forecaster
from ijepa.forecast.devices import find_device
from ijepa.foresight import State, only_foreseen
from ijepa.recipes import load_recipe
from ijepa.stage import StagePlan, exclusive_work
from ijepa_cli.foresee import foresee, read_commands
from ijepa_cli.main import app, main

ROOT = Path(__file__).parents[1]
GROUP = typer.main.get_group(app)
SCALES = ("mini", "cifar10", "imagenette", "in1k")
# Sources that a scale may be given; none of them needs to be there to plan.
GIVEN = {
    name: f"/data/{name.lower()}"
    for name in (
        "CIFAR10",
        "CIFAR100",
        "IMAGENETTE",
        "CLEVR",
        "IN1K",
        "IN22K",
        "PLACES205",
        "INAT18",
    )
}


class Choice(Config):
    number: int = 1


def stage(out, number=1, *, force=False):
    """A stage that makes one file."""
    plan = StagePlan("test", 1, Choice(number=number), {"data": "d"}, out)
    with exclusive_work(plan, force=force) as work:
        if not work.cached:
            (work.folder / out.name).write_text("made")
            work.publish_file({})


def foreseen(out, number=1, **how):
    with only_foreseen() as found:
        stage(out, number, **how)
    return found[-1].state, found[-1].why


def test_foreseeing_a_stage_leaves_nothing_behind(tmp_path):
    assert foreseen(tmp_path / "folder" / "out") == (State.NEW, "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_foreseen_is_what_then_happens(tmp_path):
    out = tmp_path / "out"
    stage(out)
    assert foreseen(out) == (State.CACHED, "")
    assert foreseen(out, number=2) == (State.CHANGED, "number was 1, now 2")
    assert foreseen(out, force=True) == (State.CHANGED, "--force")
    assert out.read_text() == "made"


def test_what_a_kill_left_goes_on(tmp_path):
    out = tmp_path / "out"
    with exclusive_work(StagePlan("test", 1, Choice(), {"data": "d"}, out)) as work:
        (work.folder / "half").touch()
    assert foreseen(out)[0] is State.PARTIAL
    assert foreseen(out, number=2)[0] is State.NEW


def test_stages_work_again_after_one_was_foreseen(tmp_path):
    foreseen(tmp_path / "out")
    stage(tmp_path / "out")
    assert (tmp_path / "out").is_file()


@pytest.fixture
def pipeline(shards, tmp_path, monkeypatch):
    """Commands of a tiny pipeline whose shards are there, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(
        "base: cifar10\n"
        "encoder: {arch: 32x2x2}\n"
        "predictor: {dim: 16, depth: 1}\n"
        "optimization: {epochs: 1, warmup_epochs: 0.5}\n"
        "watch: {num_images: 32}\n"
    )
    where = f"--data {shards} --device cpu --workers 0"
    return [
        f".venv/bin/ijepa pretrain --recipe tiny.yaml {where} --out run --replace",
        f"torchrun --nproc-per-node 2 -m ijepa_cli extract --encoder run {where} --out a.h5",
        f"ijepa extract --encoder run {where} \\",
        "  --split val --out b.h5",
        f"ijepa extract --encoder pixels {where} --out pixels.h5",
        "echo nothing of ours",
        "ijepa probe knn --train a.h5 --test b.h5 --out r.json",
    ]


def states(lines):
    return {
        step.out: (step.state.value, step.why)
        for _, step in foresee(read_commands(lines, GROUP), GROUP)
    }


def run_all(lines):
    for command in read_commands(lines, GROUP):
        GROUP.main(command.arguments, standalone_mode=False)


def test_what_needs_an_output_to_come_waits_for_it(pipeline):
    assert states(pipeline) == {
        "run": ("new", ""),
        "a.h5": ("waits", "for run"),
        "b.h5": ("waits", "for run"),
        "pixels.h5": ("new", ""),
        "r.json": ("waits", "for a.h5"),
    }


def test_after_a_run_all_is_cached_and_a_changed_recipe_runs_only_what_depends_on_it(pipeline):
    run_all(pipeline)
    assert {state for state, _ in states(pipeline).values()} == {"cached"}

    recipe = Path("tiny.yaml")
    recipe.write_text("# only a comment\n" + recipe.read_text())
    assert {state for state, _ in states(pipeline).values()} == {"cached"}

    recipe.write_text(recipe.read_text().replace("depth: 1", "depth: 2"))
    found = states(pipeline)
    assert found["run"] == ("changed", "predictor.depth was 1, now 2")
    assert found["pixels.h5"] == ("cached", "")
    assert found["r.json"] == ("waits", "for a.h5")

    run_all(pipeline)
    assert {state for state, _ in states(pipeline).values()} == {"cached"}


def test_a_command_that_cannot_run_is_refused_with_its_reason(pipeline):
    found = states(["ijepa extract --encoder no-run --data nothing --out x.h5"])
    assert found["x.h5"][0] == "refused"
    assert "nothing is not a shard set" in found["x.h5"][1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ijepa extract --no-such-option", "no single command of ijepa"),
        ("ijepa nonsense", "no single command of ijepa"),
        ("ijepa shard a b && ijepa shard c d", "no single command of ijepa"),
        ("ijepa shard 'a b", "no command"),
        ("ijepa pretrain --recipe r --data d --out o --launcher slurm", "Leave --launcher out"),
        ("ijepa pretrain --recipe r --data d --out o --dry-run", "Leave --dry-run out"),
        ("ijepa report --compare a.json b.json", "Leave --compare out"),
    ],
)
def test_a_line_that_would_not_make_its_output_here_is_refused(line, message):
    with pytest.raises(IjepaError, match=message):
        list(read_commands([line], GROUP))


def test_lines_that_make_nothing_are_passed_over():
    lines = ["# ijepa isn't here", "", "ijepa recipes", "ijepa shard --help"]
    (command,) = read_commands([*lines, "OMP_NUM_THREADS=1 ijepa shard a b  # c"], GROUP)
    assert str(command.options["out"]) == "b"


@pytest.mark.parametrize("name", ["{out}", "./{out}", "{here}/{out}", "{out}/part"])
@pytest.mark.parametrize("out", ["px=64", "a:b", "run"])
def test_an_output_to_come_is_known_however_it_is_spelt(name, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = name.format(out=out, here=tmp_path)
    made = f"ijepa shard scenes:train=1 {out}"
    for use in (f"ijepa report {text}",):
        assert states([made, f"{use} --out page.html"])["page.html"] == ("waits", f"for {out}")
    random = f"ijepa extract --encoder random:{text} --data {tmp_path} --out f.h5"
    assert states([made, random])["f.h5"] == ("waits", f"for {out}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ijepa extract --encoder pixels --data nothing --out x.h5", "nothing is not a shard set"),
        ("echo", "There are no commands"),
    ],
)
def test_what_cannot_run_stops_a_reproduction_before_it_starts(
    text, message, tmp_path, monkeypatch, capsys
):
    commands = tmp_path / "commands"
    commands.write_text(text)
    monkeypatch.setattr(sys, "argv", ["ijepa", "plan", str(commands), "--fresh"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_plan_prints_each_stage_and_the_sum(pipeline, monkeypatch, capsys):
    Path("commands").write_text("\n".join(pipeline))
    monkeypatch.setattr(sys, "argv", ["ijepa", "plan", "commands"])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert "5 stages: 0 cached, 5 to come; on epyc-2-cores one after the other" in out


def test_plan_fresh_names_what_is_there_and_nothing_else(pipeline, monkeypatch, capsys):
    run_all(pipeline[:1])
    Path("commands").write_text("\n".join(pipeline))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["ijepa", "plan", "commands", "--fresh"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == "run\n"


def lines_of(scale, *given):
    if shutil.which("make") is None:
        pytest.skip("make, whose graph this reads, is not installed")
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    made = subprocess.run(
        ["make", "--dry-run", "--file", "reproduce/graph.mk", "all", f"SCALE={scale}", *given],
        cwd=ROOT, env=alone, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return made.stdout.splitlines(), made.stderr


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_a_graph_of_commands_with_recipes_that_load(scale, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines, _ = lines_of(scale, *(f"{name}={path}" for name, path in GIVEN.items()))
    commands = list(read_commands(lines, GROUP))
    assert {"shard", "pretrain", "extract", "probe", "finetune", "report"} <= {
        command.stage for command in commands
    }
    made = [command.options["out"] for command in commands]
    assert len(made) == len(set(made))
    for command in commands:
        if command.stage == "pretrain":
            load_recipe(command.options["recipe"], command.options["overrides"])


@pytest.mark.parametrize(
    ("scale", "given", "message"),
    [
        ("cifar10", (), "SCALE=cifar10 needs data"),
        ("mini", ("TABLES=1 9",), "SCALE=mini has no table 9"),
        ("mini", ("ENCODERS=/nowhere",), "ENCODERS=/nowhere has no weights"),
        ("cifar10", ("CIFAR10=/my sets/c.tar.gz",), "has a space"),
        ("huge", (), "SCALE=huge is not known"),
    ],
)
def test_what_a_graph_cannot_be_made_of_is_said(scale, given, message):
    lines, error = lines_of(scale, *given)
    assert lines == []
    assert message in error


def test_any_table_can_be_asked_for_alone():
    lines, _ = lines_of("in1k", "TABLES=14", "IN1K=/data")
    assert {command.stage for command in read_commands(lines, GROUP)} == {
        "shard", "pretrain", "finetune", "report",
    }  # fmt: skip


def test_processes_of_several_gpus_are_started_by_the_same_environment():
    lines, _ = lines_of("in1k", "IN1K=/data", "GPUS=8", "IJEPA=/venv/bin/ijepa")
    started = {line.split()[0] for line in lines if " pretrain " in line or " extract " in line}
    assert started == {"/venv/bin/torchrun"}


def test_weights_of_others_become_encoders_of_the_tables(tmp_path):
    for name in ("mae-vit_large.pth", "mae-vit_large.full.pth", "mae-vit_large.md5", "byol-rn.pth"):
        (tmp_path / name).touch()
    lines, _ = lines_of("mini", f"ENCODERS={tmp_path}")
    commands = list(read_commands(lines, GROUP))
    used = {str(command.options.get("encoder")) for command in commands}
    assert {name for name in used if ":/" in name} == {
        f"mae:{tmp_path}/mae-vit_large.pth",
        f"mae:{tmp_path}/mae-vit_large.full.pth",
        f"byol:{tmp_path}/byol-rn.pth",
    }
    tuned = {c.options["encoder"] for c in commands if c.stage == "finetune"}
    assert f"mae:{tmp_path}/mae-vit_large.pth" in tuned
    assert f"byol:{tmp_path}/byol-rn.pth" not in tuned  # a ResNet is not fine-tuned


def cost(device, devices, *lines):
    forecaster = Forecaster(find_device(device), devices)
    return [
        forecaster.cost(command.stage, command.options) for command in read_commands(lines, GROUP)
    ]


def test_the_papers_largest_run_is_planned_at_about_the_papers_72_hours():
    _, run = cost(
        "a100", 16, "ijepa shard imagenet:/data s",
        "ijepa pretrain --recipe in1k_vith14_ep300 --data s --out r",
    )  # fmt: skip
    assert run.seconds == pytest.approx(72 * 3600, rel=0.1)


def test_twice_the_devices_take_half_the_time_and_views_take_disk():
    lines = (
        "ijepa shard imagenet:/data s",
        "ijepa pretrain --recipe in1k_vitl16_ep600 --data s --out r",
        "ijepa extract --encoder r --data s --out f.h5",
        "ijepa extract --encoder r --data s --views 2 --augment rrc-flip --out g.h5",
    )
    one, two = cost("a100", 1, *lines), cost("a100", 2, *lines)
    assert one[1].seconds == pytest.approx(2 * two[1].seconds, rel=0.01)
    assert one[2].disk_gb == pytest.approx(1_281_167 * 4 * 1024 * 2 / 1e9)
    assert one[3].disk_gb == pytest.approx(3 * one[2].disk_gb)


def test_a_probe_costs_more_with_every_baseline():
    shard = "ijepa shard scenes:train=1000,val=500 s"
    features = [
        f"ijepa extract --encoder random:{name} --data s --split {split} --out {name}.{split}.h5"
        for name in ("r",)
        for split in ("train", "val")
    ]
    run = "ijepa pretrain --recipe scenes-mini --data s --out r"
    probe = "ijepa probe linear --train r.train.h5 --test r.val.h5 --out p.json"
    baseline = " --baseline-train r.train.h5 --baseline-test r.val.h5"
    costs = cost(
        "epyc-2-cores", 1, shard, run, *features, *(probe + baseline * n for n in range(3))
    )
    none, one, two = (found.seconds for found in costs[-3:])
    assert one - none == pytest.approx(two - one)
    assert one > none


def test_what_cannot_be_known_is_not_guessed():
    shard, run = cost(
        "h100",
        1,
        "ijepa shard /no/such/folder s",
        "ijepa pretrain --recipe cifar10 --data s --out r",
    )
    assert shard.seconds is None
    assert run.seconds is None


def test_a_device_of_ones_own_is_a_file(tmp_path):
    body = (ROOT / "ijepa/forecast/devices.yaml").read_text()
    own = tmp_path / "mine.yaml"
    own.write_text("mine:" + body.partition("h100:")[2])
    assert find_device(str(own)) == find_device("h100")
    own.write_text("mine: {train_tflops: 3}")
    with pytest.raises(IjepaError, match="forward_tflops"):
        find_device(str(own))
    with pytest.raises(IjepaError, match="There is no device 'abacus'; there are epyc-2-cores"):
        find_device("abacus")


def test_a_plan_is_json_for_machines(pipeline, monkeypatch, capsys):
    Path("commands").write_text("\n".join(pipeline))
    monkeypatch.setattr(sys, "argv", ["ijepa", "plan", "commands", "--json"])
    with pytest.raises(SystemExit):
        main()
    body = json.loads(capsys.readouterr().out)
    assert body["to_come"] == 5
    assert next(step["stage"] for step in body["steps"]) == "pretrain"
