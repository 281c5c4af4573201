"""The Makefile: paths stay whole, clean is careful, and make knows what depends on what."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ijepa.config import Config
from ijepa.recipes import load_recipe
from ijepa.shard import shard
from ijepa.stage import StagePlan, exclusive_work

ROOT = Path(__file__).parents[1]
BAD_NAMES = ("", "x reproduce", "..", ".", "/tmp", "a'b", "a;b", "$(shell touch PWNED)", "-rf")


# Makes the record of what it is asked for, as a stage does, says and remembers what it was asked.
STAGE = """#!/bin/sh
printf '%s\\n' "$@"
printf '%s\\n' "$(printf '%s\\t' "$@")" >> log
out=$3
for word; do [ "$before" = --out ] && out=$word; before=$word; done
case $out in *.json|*.h5|*.html|*.png) record=$out.stage.json ;; *) record=$out/stage.json ;; esac
mkdir -p "$(dirname "$record")" && touch "$record"
case $1 in shard) made=$out/index.json ;; pretrain) made=$out/config.yaml ;; *) made=$record ;; esac
[ -e "$made" ] || touch "$made"
"""
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of what make reads, with an `ijepa` that only makes records."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("reproduce", "ijepa/recipes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name, script in {
        "ijepa/stage": STAGE,
        "python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n',
    }.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make(folder):
    """Run the pipeline of the Makefile; `ijepa` prints its arguments, one a line."""

    def run(*words):
        (folder / "log").unlink(missing_ok=True)
        tools = ["-o", "setup", f"IJEPA={folder}/ijepa/stage", "BIN=."]
        env = OUTSIDE | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(["make", *tools, *words], env=env, capture_output=True, text=True)

    return run


def output(out, *, is_folder=True):
    """Something that a stage made."""
    with exclusive_work(StagePlan("test", 1, Config(), {}, out, is_folder=is_folder)) as work:
        (work.folder / ("content" if is_folder else out.name)).write_text("x")
        work.publish({})


@pytest.mark.parametrize("path", ["photos/bob's own", 'a "b" $(touch PWNED) `touch PWNED` ;#%,'])
def test_paths_with_spaces_and_quotes_reach_the_command_whole(make, tmp_path, path):
    done = make("report", f"DATA={path}", f"ENCODER={path}", "PROBE=knn", "REPORT=it's here.html")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:2] == ["shard", path]
    assert {path, f"random:{path}", "it's here.html"} <= set(words[3:])
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_plain_file_name_is_refused_before_anything_runs(make, tmp_path, name):
    for target in ("clean", "shard"):
        done = make(target, f"NAME={name}")
        assert done.returncode == 2
        assert done.stdout == ""
        assert "is to be letters, digits" in done.stderr
    assert (tmp_path / "reproduce").is_dir()
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("variable", ["LABELS", "PROBE", "TRAIN", "TEST", "SEED", "WORKERS"])
def test_words_that_become_names_of_files_are_checked(make, variable):
    assert f"{variable}=bob's is to be letters" in make("report", f"{variable}=bob's").stderr
    assert "is to be names without dots" in make("report", "LABELS=eye.colour").stderr


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("/home/me/my photos/", "my-photos"),
        ("cifar10:sets/cifar-10.tar.gz", "cifar-10"),
        ("birds.csv", "birds"),
        ("scenes:train=10,val=5", "scenes-train-10-val-5"),
    ],
)
def test_images_of_yours_give_a_name_and_let_the_recipe_be_chosen(make, data, name):
    words = make("pretrain", f"DATA={data}").stdout.splitlines()
    assert words[:3] == ["shard", data, f"shards/{name}"]
    assert words[words.index("--recipe") + 1] == "auto"
    assert words[-1] == f"runs/{name}"
    words = make("pretrain", f"DATA={data}", "NAME=x", "RECIPE=cifar10").stdout.splitlines()
    assert (words[2], words[words.index("--recipe") + 1]) == ("shards/x", "cifar10")


@pytest.mark.parametrize(
    ("labels", "probed"),
    [
        ({}, ()),
        ({"class": "ab"}, ("class",)),
        ({"id": "abcdefgh", "colour": "ab"}, ("colour",)),
        ({"hair colour": "ab", "eye.colour": "ab", "colour": "ab"}, ("colour",)),
    ],
)
def test_images_are_scored_on_the_labels_that_they_have(make, folder, labels, probed):
    listed = ["path,split" + "".join(f",{label}" for label in labels)]
    for number in range(16):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        values = "".join(f",{classes[number // 2 % len(classes)]}" for classes in labels.values())
        listed.append(f"{number}.png,{('train', 'val')[number % 2]}{values}")
    (folder / "list.csv").write_text("\n".join(listed))
    shard(folder / "list.csv", folder / "shards/list")
    done = make("report", "DATA=list.csv", "PROBE=knn")
    assert done.returncode == 0, done.stderr
    commands = asked(folder)
    assert [one[3] for one in commands if one[0] == "probe"] == list(probed)
    assert {one[0] for one in commands} >= {"extract", "visualize", "report"}
    assert ("make takes no label 'eye.colour', 'hair colour'" in done.stderr) == (len(labels) == 3)
    assert ("features" in {one[0] for one in commands}) == (not probed)
    assert "--require-label" not in commands[0]
    make("report", "DATA=list.csv", "LABELS=colour")
    assert "--require-label" in asked(folder)[0]


def test_clean_removes_what_stages_made_and_nothing_else(make, tmp_path):
    for made in ("shards/x", "runs/x"):
        output(tmp_path / made)
    (tmp_path / "runs/x.features/low-level").mkdir(parents=True)
    features = ("runs/x.features/a.h5", "runs/x.features/low-level/a.h5")
    for made in (*features, "runs/x.pictures/pca.png", "runs/x.html"):
        output(tmp_path / made, is_folder=False)
    half = StagePlan("test", 1, Config(), {}, tmp_path / "runs/x.probes/knn.json")
    with exclusive_work(half) as work:
        (work.folder / "half").write_text("x")
    for own in ("runs/x.notes/idea.txt", "runs/x.features/mine.txt", "report.html", "runs/y/a"):
        (tmp_path / own).parent.mkdir(exist_ok=True)
        (tmp_path / own).write_text("precious")
    output(tmp_path / "runs/x.old")
    done = make("clean", "NAME=x")
    assert done.returncode == 0, done.stderr
    left = {str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").rglob("*")}
    assert left == {
        "runs/x.notes", "runs/x.notes/idea.txt", "runs/x.features", "runs/x.features/mine.txt",
        "runs/y", "runs/y/a", "runs/x.old", "runs/x.old/content", "runs/x.old/stage.json",
    }  # fmt: skip
    assert list((tmp_path / "shards").iterdir()) == []
    assert (tmp_path / "report.html").exists()


def test_clean_never_removes_an_encoder(make, tmp_path):
    for made in ("shards/x", "runs/x", "runs/precious"):
        output(tmp_path / made)
    for encoder in ("runs/precious", "runs/x"):
        assert make("clean", "NAME=x", f"ENCODER={encoder}").returncode == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"x", "precious"}
    assert not (tmp_path / "shards/x").exists()


DATA = "CIFAR10 CIFAR100 IMAGENETTE CLEVR IN1K IN22K PLACES205 INAT18"
GIVEN = [f"{name}=/data/{name.lower()}" for name in DATA.split()]


def asked(folder):
    """The stage and the output, or data, of every command since `log` was removed."""
    return [line.split("\t")[:-1] for line in (folder / "log").read_text().splitlines()]


def test_only_what_depends_on_a_change_is_asked_again(make, folder):
    words = ("report", "PROBE=knn linear", "LABELS=count")
    assert make(*words).returncode == 0
    commands = asked(folder)
    assert [one[0] for one in commands] == [
        "shard", "pretrain", *["extract"] * 6, "probe", "probe", *["visualize"] * 3, "report",
    ]  # fmt: skip
    always = ["shard", "pretrain", "report"]
    assert make(*words, "-j2").returncode == 0
    assert [one[0] for one in asked(folder)] == always
    make(*words, "SEED=1")
    assert sorted(one[0] for one in asked(folder)) == sorted(one[0] for one in commands)
    (folder / "runs/scenes.features/pixels.test.h5.stage.json").touch()
    make(*words, "SEED=1")
    assert [one[0] for one in asked(folder)] == ["shard", "pretrain", "probe", "probe", "report"]
    (folder / "runs/scenes.features/random.test.h5.stage.json").touch()
    make(*words, "SEED=1")
    assert [one[0] for one in asked(folder)][2:] == ["probe", "probe", "visualize", "report"]
    (folder / "runs/scenes/config.yaml").touch()
    make(*words, "SEED=1", "-B")
    assert sorted(one[0] for one in asked(folder)) == sorted(one[0] for one in commands)
    make("low-level", "ENCODER=runs/scenes")
    assert [one[0] for one in asked(folder)] == ["shard", *["extract"] * 6, "probe"]
    os.utime(folder / "runs/scenes", (2**31, 2**31))  # trained again
    make("extract", "ENCODER=runs/scenes")
    assert [one[0] for one in asked(folder)] == ["shard", *["extract"] * 6]


@pytest.fixture
def graph(folder):
    """Run the graph of a scale where stages only make records: commands that ran, stderr."""

    def run(scale, *words):
        log = folder / "log"
        log.unlink(missing_ok=True)
        command = ["make", "--file", "reproduce/graph.mk", f"SCALE={scale}", "IJEPA=ijepa/stage"]
        done = subprocess.run([*command, *words], env=OUTSIDE, capture_output=True, text=True)
        lines = done.stdout.replace("\\\n", " ").splitlines()
        planned = [shlex.split(line)[1:] for line in lines if line.startswith("ijepa/stage ")]
        return planned or (asked(folder) if log.exists() else []), done.stderr

    return run


def option(words, name):
    return words[words.index(name) + 1]


@pytest.mark.parametrize("scale", ["mini", "cifar10", "imagenette", "in1k"])
def test_every_scale_is_a_graph_of_commands_with_recipes_that_load(graph, scale):
    commands, _ = graph(scale, "all", "-n", *GIVEN)
    assert {"shard", "pretrain", "extract", "probe", "finetune", "report"} <= {
        words[0] for words in commands
    }
    made = [words[2] if words[0] == "shard" else option(words, "--out") for words in commands]
    assert len(made) == len(set(made))
    for words in commands:
        if words[0] == "pretrain":
            assert load_recipe(option(words, "--recipe"))


def test_after_a_run_nothing_is_left_and_a_changed_recipe_runs_only_what_depends_on_it(graph):
    planned, _ = graph("mini", "-n", "TABLES=1 6")
    ran, _ = graph("mini", "-j2", "TABLES=1 6")
    assert sorted(ran) == sorted(planned)
    assert graph("mini", "TABLES=1 6")[0] == []

    Path("reproduce/mini/small.yaml").touch()
    ran, _ = graph("mini", "TABLES=1 6")
    assert [words[0] for words in ran[:4]] == ["pretrain", "extract", "extract", "probe"]
    assert {option(words, "--out") for words in ran[4:]} == {
        "runs/mini/report.html", "runs/mini/table1.html"
    }  # fmt: skip
    assert all("small" in " ".join(words) for words in ran)

    Path("ijepa/recipes/scenes-mini.yaml").touch()  # the base of all
    ran, _ = graph("mini", "TABLES=1 6")
    assert sum(words[0] == "pretrain" for words in ran) == 7
    assert not any(words[0] == "shard" for words in ran)


@pytest.mark.parametrize("changed", ["SEED=1", "SOURCE_scenes=scenes:train=20,val=5", "MAIN=block"])
def test_a_changed_variable_asks_every_stage_again(graph, changed):
    graph("mini", "TABLES=6")
    ran, _ = graph("mini", "TABLES=6", changed)
    assert sorted(ran) == sorted(graph("mini", "TABLES=6", changed, "-n", "-B")[0])
    assert graph("mini", "TABLES=6", changed)[0] == []


def test_a_page_of_one_table_is_made_again_with_all(graph):
    whole, _ = graph("mini", "TABLES=1 6")
    part, _ = graph("mini", "TABLES=6")
    assert [words[0] for words in part] == ["report", "report"]
    again, _ = graph("mini", "TABLES=1 6")
    pages = [words for words in whole if words[0] == "report"]
    assert sorted(again) == sorted(pages)
    assert graph("mini", "TABLES=1 6")[0] == []


def test_a_run_of_the_scales_name_is_not_written_into(graph):
    Path("runs/mini").mkdir(parents=True)
    Path("runs/mini/stage.json").touch()
    commands, error = graph("mini")
    assert commands == []
    assert "runs/mini holds a run of another command" in error


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
def test_what_a_graph_cannot_be_made_of_is_said(graph, scale, given, message):
    commands, error = graph(scale, *given)
    assert commands == []
    assert message in error


def test_any_table_can_be_asked_for_alone_and_processes_start_in_the_same_environment(graph):
    commands, _ = graph("in1k", "-n", "TABLES=14", "IN1K=/data")
    assert {words[0] for words in commands} == {"shard", "pretrain", "finetune", "report"}
    made = subprocess.run(
        ["make", "-n", "--file", "reproduce/graph.mk", "SCALE=in1k", "IN1K=/data", "GPUS=8",
         "IJEPA=/venv/bin/ijepa"], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    lines = made.stdout.splitlines()
    started = {line.split()[0] for line in lines if " pretrain " in line or " extract " in line}
    assert started == {"/venv/bin/torchrun"}


def test_weights_of_others_become_encoders_of_the_tables(graph, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("mae-vit_large.pth", "mae-vit_large.full.pth", "mae-vit_large.md5", "byol-rn.pth"):
        (weights / name).touch()
    mae, byol = f"mae:{weights}/mae-vit_large", f"byol:{weights}/byol-rn"
    commands, _ = graph("mini", "-n", f"ENCODERS={weights}")
    used = {option(words, "--encoder") for words in commands if "--encoder" in words}
    foreign = {name for name in used if ":/" in name}
    assert foreign == {f"{mae}.pth", f"{mae}.full.pth", f"{byol}.pth"}
    tuned = {option(words, "--encoder") for words in commands if words[0] == "finetune"}
    assert f"{mae}.pth" in tuned
    assert f"{byol}.pth" not in tuned  # a ResNet is not fine-tuned


def test_reproduce_installs_what_its_decoder_needs_before_it_begins(make, folder):
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    told = make("-n", "reproduce").stdout
    assert 0 < told.index(".[decoder]") < told.index("train-decoder")


SMALL = (
    "DATASETS=scenes", "RUNS=main", "SIZES=main", "MASKED=main", "TABLES=2 6",
    "SOURCE_scenes=scenes:train=600,val=100",
    "PRETRAIN=--set optimization.epochs=1 --set encoder.arch=32x4x2 --set predictor.dim=16"
    " --set watch.num_images=32",
    "TUNE=--set batch_size=8 --set epochs=1 --set warmup_epochs=0",
    "DECODER=--steps 2 --set image_px=24",
)  # fmt: skip


@pytest.mark.slow
def test_a_small_reproduction_runs_to_its_pages_and_is_then_all_cached(tmp_path):
    """With the real commands: every kind of rule is there once."""
    pytest.importorskip("diffusers")  # of extras decoder and dev
    for name in ("reproduce", "ijepa/recipes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    command = Path(sys.executable).with_name("ijepa")
    words = ["make", "--file", "reproduce/graph.mk", "SCALE=mini", f"IJEPA={command}", *SMALL]
    env = OUTSIDE | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    made = tmp_path / "runs" / "mini"
    pages = {"report.html", "table2.html", "table6.html"}
    assert pages <= {path.name for path in made.glob("*.html")}
    again = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "Nothing to be done for 'all'" in again.stdout
