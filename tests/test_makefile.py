"""The Makefile's rules take any path, and remove only what stages made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ijepa.config import Config
from ijepa.stage import StagePlan, exclusive_work

ROOT = Path(__file__).parents[1]
BAD_NAMES = ("", "x reproduce", "..", ".", "/tmp", "a'b", "a;b", "$(shell touch PWNED)", "-rf")


@pytest.fixture
def make(tmp_path):
    """Run make in a copy of what it reads; `ijepa` prints its arguments, one a line."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "reproduce", tmp_path / "reproduce")
    scripts = {
        "ijepa": 'for word in "$@"; do echo "$word"; done',
        "python": f'exec "{sys.executable}" "$@"',
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def run(*words):
        tools = ["-o", "setup", f"IJEPA={tmp_path}/ijepa", "BIN=."]
        return subprocess.run(
            ["make", *tools, *words],
            cwd=tmp_path, env=outside | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip

    return run


def output(out, *, is_folder=True):
    """Something that a stage made."""
    with exclusive_work(StagePlan("test", 1, Config(), {}, out, is_folder=is_folder)) as work:
        (work.folder / ("content" if is_folder else out.name)).write_text("x")
        (work.publish_folder if is_folder else work.publish_file)({})


@pytest.mark.parametrize("path", ["photos/bob's own", 'a "b" $(touch PWNED) `touch PWNED` ;#%,'])
def test_paths_with_spaces_and_quotes_reach_the_command_whole(make, tmp_path, path):
    done = make("report", f"DATA={path}", f"ENCODER={path}", "PROBE=knn", "REPORT=it's here.html")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:3] == ["shard", path, "shards/scenes"]
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


def test_clean_removes_what_stages_made_and_nothing_else(make, tmp_path):
    for made in ("shards/x", "runs/x"):
        output(tmp_path / made)
    (tmp_path / "runs/x.features/low-level").mkdir(parents=True)
    for made in ("runs/x.features/a.h5", "runs/x.features/low-level/a.h5", "runs/x.html"):
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
