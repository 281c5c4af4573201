"""The command line as a user meets it: exit codes, one line an error, quick help."""

import json
import re
import signal
import subprocess
import sys

import pytest
import typer

from ijepa.config import ExtractConfig, Runtime
from ijepa.extract import extract
from ijepa_cli.main import COMMANDS, app

GROUP = typer.main.get_group(app)


def test_help_names_every_command_in_pipeline_order(ijepa):
    code, out, _ = ijepa("--help")
    assert code == 0
    assert re.findall(r"^│ ([a-z][a-z-]+) ", out, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(ijepa, command):
    code, out, _ = ijepa(command, "--help")
    assert code == 0
    assert f"ijepa {command}" in out
    assert "…" not in out  # at 80 columns no name is cut short


def test_the_command_line_imports_nothing_heavy():
    script = (
        "import sys, ijepa_cli.main\n"
        "heavy = {'torch', 'timm', 'numpy', 'sklearn', 'faiss', 'h5py', 'webdataset'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


OPTIONS = {  # what --help shows; a change is meant, and said in the changelog
    "shard": "split val-fraction resize channels shuffle member max-bad part merge masks "
    "depth check require-split require-label workers",
    "pretrain": "recipe data out init prolong device workers checkpoint-seconds micro-batch "
    "recompute compile cache track no-pictures replace launcher nodes gpus-per-node "
    "minutes slurm",
    "extract": "data out encoder split which checkpoint layers tokens image-size crop views "
    "augment device workers",
    "probe": "train test out baseline-train baseline-test subset protocol label shots seed device",
    "finetune": "data out subset encoder protocol label test-split freeze linear-first seed device "
    "workers checkpoint-seconds track replace",
    "train-decoder": "data out encoder condition steps test-split seed device workers "
    "checkpoint-seconds replace",
    "report": "compare out title paper table",
    "convert": "to which arch license",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_of_a_stage_are_these(command):
    shown = [one for one in GROUP.commands[command].params if not getattr(one, "hidden", False)]
    options = {
        name for one in shown for name in (*one.opts, *one.secondary_opts) if name.startswith("--")
    }
    common = {"--force", "--dry-run", "--json", "--set"}
    assert options - {"--help"} == {f"--{name}" for name in OPTIONS[command].split()} | common


def test_a_setting_is_given_by_name_or_by_set(ijepa, shards, tmp_path):
    arguments = ["--encoder", "pixels", "--data", shards, "--image-size", "8", "--device", "cpu"]
    arguments += ["--out", tmp_path / "f.h5"]
    assert ijepa("extract", *arguments, "--dtype", "float32")[0] == 0
    assert "cached" in ijepa("extract", *arguments, "--set", "dtype=float32")[1]
    code, _, err = ijepa("extract", *arguments, "--set", "dtyp=float32")
    assert code == 1
    assert "dtyp is not a known setting" in err


def test_a_wrong_value_is_named_by_the_option_that_was_typed(ijepa):
    wrong = ("--resize", "0"), ("--set", "resize_px=0")
    errors = [ijepa("shard", "photos", "out", *words)[2] for words in wrong]
    assert errors[0].startswith("error: options: --resize 0: it should be")
    assert errors[1].startswith("error: options: resize_px = 0: it should be")


@pytest.mark.parametrize("how", [("--subset", "4-per-class"), ("--set", "subset=4-per-class")])
def test_a_part_of_the_images_is_chosen_either_way(ijepa, files, tmp_path, how):
    words = ["finetune", "--encoder", files["run"], "--data", files["shards"], *how]
    words += ["--set", "batch_size=16", "--out", tmp_path / "out", "--dry-run", "--json"]
    assert json.loads(ijepa(*words)[1])["train_images"] == 32


def test_a_wrong_option_is_a_usage_error(ijepa):
    assert ijepa("pretrain", "--nonsense")[0] == 2


PROBE = "probe {} --train a --test b --out r"
UNREAD = [
    ("low-level", "--protocol mae-lars"),
    ("low-level", "--label count"),
    ("knn", "--scale rows"),
    ("logistic", "--precision bf16"),
    ("linear", "--shots 5"),
    ("logistic", "--draws 5"),
    ("few-shot", "--draws 5 --subset list.txt"),
    ("few-shot", "--shots 5 --subset list.txt"),
    ("low-level", "--subset list.txt"),
]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("shard nowhere out", "nowhere"),
        ("pretrain --recipe nothing --data x --out y", "no recipe 'nothing'"),
        ("pretrain --recipe cifar10 --data x --out y", "There is no data set at 'x'"),
        ("pretrain --recipe cifar10 --data x --out y --nodes 2", "describe a job: add --launcher"),
        (
            "pretrain --recipe cifar10 --data x --out y --prolong z --dry-run",
            "z is no finished run",
        ),
        (
            "train-decoder --encoder e --data SHARDS --out y --test-split z --dry-run",
            "no split 'z'",
        ),
        ("pretrain --data SHARDS --out .", ". does not end in a name"),
        ("finetune --encoder . --data SHARDS --out y", ". does not end in a name"),
        (
            "finetune --encoder e --data SHARDS --out y --randaugment rand-m",
            "--randaugment rand-m:",
        ),
        ("extract --encoder pixels --data x --out y", "x is not a shard set"),
        ("extract --encoder pixels --data http://h/x --out y", "elsewhere: `ijepa pretrain` alone"),
        ("extract --encoder nothing --data SHARDS --out y", "random:RUN"),
        ("extract --encoder random:vit_odd --data SHARDS --out y", "vit_small"),
        (f"{PROBE.format('few-shot')} --shots 1.5", "shots 1.5 is neither a number of images nor"),
        *(
            (f"{PROBE.format(name)} {options}", f"{options.split()[0]} changes nothing in {name}")
            for name, options in UNREAD
        ),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_1(
    ijepa, shards, tmp_path, monkeypatch, line, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = ijepa(*line.replace("SHARDS", str(shards)).split())
    assert (code, out) == (1, "")
    *begun, said = err.splitlines()
    assert said.startswith("error: ")
    assert [line.partition(":")[0] for line in begun] in ([], ["extract"])  # what was about to run
    assert message in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def files(shards, run, tmp_path_factory):
    """What the commands below read."""
    folder = tmp_path_factory.mktemp("files")
    for split in ("train", "val"):
        config = ExtractConfig(encoder="pixels", image_px=8, split=split)
        extract(shards, folder / f"{split}.h5", config, Runtime(device="cpu", workers=0))
    return {"shards": shards, "run": run, "features": folder}


STAGES = [
    "shard scenes:train=2,val=2 OUT",
    "pretrain --recipe {run}/config.yaml --data {shards} --out OUT",
    "extract --encoder {run} --data {shards} --split val --out OUT.h5",
    "probe knn --train {features}/train.h5 --test {features}/val.h5 --out OUT.json",
    "finetune --encoder {run} --data {shards} --out OUT --set batch_size=16",
    "train-decoder --encoder {run} --data {shards} --out OUT --set batch_size=16",
    "visualize masks --recipe {run}/config.yaml --out OUT.png",
    "visualize attention --encoder {run} --data {shards} --out OUT.png",
    "visualize neighbors --features {features}/val.h5 --out OUT.png",
    "convert {run} OUT.pt --to ours",
    "report {run} --out OUT.html",
]


@pytest.mark.parametrize("line", STAGES)
def test_a_dry_run_of_any_stage_says_what_would_happen_and_writes_nothing(
    ijepa, files, tmp_path, line
):
    words = line.format(**files).replace("OUT", str(tmp_path / "out")).split()
    code, printed, err = ijepa(*words, "--dry-run", "--json")
    assert code == 0, err
    found = json.loads(printed)
    assert (found["state"], found["why"]) == ("would run", "nothing is there yet")
    assert found["out"].startswith(str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_is_cached_what_changed_and_what_it_costs(ijepa, files):
    out = files["features"] / "val.h5"
    words = ["extract", "--encoder", "pixels", "--data", files["shards"], "--out", out]
    words += ["--image-size", "8", "--split", "val", "--dry-run"]
    assert ": cached" in "".join(ijepa(*words)[1].split("\n"))
    found = json.loads(ijepa(*words, "--layers", "2", "--json")[1])
    assert (found["state"], found["why"]) == ("would run", "layers was 4, now 2")
    words = ["--data", files["shards"], "--out", out.parent / "r", "--dry-run", "--json"]
    plan = json.loads(ijepa("pretrain", "--recipe", "cifar10", *words)[1])
    assert plan["images"] == 256
    assert plan["encoder_parameters"] > 10**5


def test_json_is_all_there_is_on_stdout(ijepa, shards, run):
    words = ["--recipe", run / "config.yaml", "--data", shards, "--out", run, "--json"]
    code, printed, _ = ijepa("pretrain", *words)
    assert code == 0
    assert json.loads(printed)["cached"] is True


def test_recipes_are_listed_and_shown(ijepa):
    assert "\ncifar10 " in "\n" + ijepa("recipes")[1]
    assert "batch_size: 2048" in ijepa("recipes", "in1k_vith14_ep300")[1]


@pytest.mark.parametrize(("asked", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_says_that_the_work_is_kept(
    ijepa, monkeypatch, tmp_path, asked, expected
):
    monkeypatch.setattr("ijepa.report.report", lambda *_, **__: signal.raise_signal(asked))
    for force, words in ((), "command."), (("--force",), "command without --force."):
        code, out, err = ijepa("report", "x.json", "--out", tmp_path / "report.html", *force)
        assert (code, out) == (expected, "")
        assert f"Stopped; finished work is kept. To continue, run the same {words}\n" == err


def test_a_mistake_of_ours_ends_the_command_though_workers_ignore_sigterm():
    script = (
        "import multiprocessing, signal, sys, time\n"
        "from ijepa_cli import main\n"
        "def work():\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(600)\n"
        "def app():\n"
        "    worker = multiprocessing.get_context('fork').Process(target=work, daemon=True)\n"
        "    worker.start()\n"
        "    time.sleep(0.5)\n"
        "    raise ZeroDivisionError\n"
        "main.app = app\n"
        "main.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("ZeroDivisionError\n")
