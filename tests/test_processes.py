"""Who is alone or one of many; and helping processes, which end with the one that they help."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_distributed import ENVIRONMENT, together

from ijepa import files
from ijepa.config import Runtime, ShardConfig
from ijepa.data.shards import open_shards
from ijepa.distributed import pick_device
from ijepa.errors import IjepaError
from ijepa.recipes import dump_yaml
from ijepa.shard import shard
from ijepa.world import World, current_world, process_pool
from ijepa_cli import main

TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
}  # fmt: skip
ALONE = {name: value for name, value in ENVIRONMENT.items() if name not in TORCHRUN}


def ijepa(*words, environment=(), cwd=None, limit_bytes=None):
    """Run the command line in a process of its own."""

    def limit():
        if limit_bytes:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(
        [sys.executable, "-m", "ijepa_cli", *words], env=ALONE | dict(environment), cwd=cwd,
        capture_output=True, text=True, timeout=120, preexec_fn=limit,
    )  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """80 images of noise."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for number in range(80):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("missing", [*TORCHRUN, None])
def test_only_all_variables_of_torchrun_together_make_one_of_many(monkeypatch, missing):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    if missing:
        monkeypatch.setenv(missing, "")
        assert current_world() == World()
    else:
        assert current_world() == World(1, 2, 1)


@pytest.mark.parametrize(
    "wrong", [{"RANK": "x"}, {"RANK": "2"}, {"WORLD_SIZE": "0"}, {"RANK": "-1"}]
)
def test_variables_that_do_not_fit_together_are_one_line(wrong, tmp_path):
    done = ijepa("shard", "nowhere", "out", environment=TORCHRUN | wrong, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: The environment says ")
    assert done.stderr.count("\n") == 1


def test_a_part_of_these_variables_neither_silences_errors_nor_results(images, tmp_path):
    given = {"RANK": "1", "WORLD_SIZE": "2"}
    failed = ijepa("shard", "nowhere", "out", "--json", environment=given, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr == "error: There is no data set at 'nowhere'.\n"
    assert json.loads(failed.stdout) == {"error": "There is no data set at 'nowhere'."}
    done = ijepa("shard", images, tmp_path / "out", "--json", environment=given)
    assert json.loads(done.stdout)["splits"] == {"train": 80}


def test_what_one_process_alone_finds_is_said_by_it(run, shards, tmp_path):
    """Rank 1 has no such device, rank 0 waits for it until somebody ends both."""
    script = (
        "import os, sys\n"
        "from ijepa_cli import main\n"
        "main.RANK_0_SECONDS = 1\n"
        "rank = os.environ['RANK']\n"
        "sys.argv = ['ijepa', 'shard', 'nowhere', 'out'] if rank == '1' else ['ijepa', 'recipes']\n"
        "main.main()\n"
    )
    codes, errors = together(2, [], script)
    assert codes == [0, 1]
    assert errors == ["", "error: There is no data set at 'nowhere'.\n"]


@pytest.mark.parametrize(
    ("rank", "local_rank", "waits"), [(0, 0, []), (1, 1, [1]), (2, 0, [1]), (3, 1, [2])]
)
def test_of_each_machine_the_first_process_speaks_first(
    rank, local_rank, waits, monkeypatch, capfd
):
    ours = {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": "4"}
    for name, value in (TORCHRUN | ours).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["ijepa", "shard", "nowhere", "out"])
    monkeypatch.setattr(main, "RANK_0_SECONDS", 1)
    slept = []
    monkeypatch.setattr(main.time, "sleep", slept.append)
    with pytest.raises(SystemExit):
        main.main()
    assert [seconds for seconds in slept if seconds] == waits
    assert "There is no data set at 'nowhere'." in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["nonsense=1", "masks.target_scale=[0.9,0.99]"])
def test_a_recipe_that_all_processes_of_torchrun_refuse_is_refused_once(wrong, shards, tmp_path):
    """Before they join, and after."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    words = ["ijepa_cli", "pretrain", "--recipe", "cifar10", "--set", wrong, "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, *torchrun, *words, "--data", shards, "--out", tmp_path / "run"],
        env=ALONE, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr.count("error: ") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["shard", "--nonsense"], ["plan", "-h"]])
def test_json_never_ends_without_an_object_unless_it_succeeds(words):
    done = ijepa(*words, "--json")
    assert (done.returncode == 0) or json.loads(done.stdout)["error"]


def wait_until(holds):
    until = time.monotonic() + 300  # of a busy machine
    while not (found := holds()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in path.read_text().split()]


def test_workers_that_were_held_back_write_nothing_into_the_set_of_the_next_run(
    images, tmp_path, monkeypatch
):
    out, config = tmp_path / "set", ShardConfig(shard_bytes=20_000)
    words = ["-m", "ijepa_cli", "shard", images, out, "--shard-bytes", "20000", "--workers", "2"]
    first = subprocess.Popen([sys.executable, *map(str, words)], env=ALONE)
    partial = out.with_name("set.partial")
    wait_until(lambda: list(partial.glob("*.tar.*.tmp")) or out.exists())
    workers = children(first)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        first.kill()
        first.wait()
        monkeypatch.setattr(files, "ORPHANS_SECONDS", 0.5)
        with pytest.raises(IjepaError, match=r"workers of process .*, which has ended"):
            shard(str(images), out, config, Runtime(workers=2))
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    monkeypatch.setattr(files, "ORPHANS_SECONDS", 20)
    shard(str(images), out, config, Runtime(workers=2))
    expected = {shard.name for shard in open_shards(out).splits["train"].shards}
    expected |= {"index.json", "train.index.npy", "stage.json"}
    assert {path.name for path in out.iterdir()} == expected
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.slow
@pytest.mark.parametrize("ended", [signal.SIGINT, signal.SIGKILL])
def test_workers_that_render_scenes_end_with_their_parent_at_once(tmp_path, ended):
    words = ["-m", "ijepa_cli", "shard", "scenes:train=200000,val=10", "set", "--workers", "2"]
    first = subprocess.Popen(
        [sys.executable, *words], env=ALONE, cwd=tmp_path, start_new_session=True
    )
    try:
        workers = wait_until(lambda: len(children(first)) >= 2 and children(first))
        wait_until(lambda: any(file.stat().st_size for file in tmp_path.rglob("packed.images")))
        if ended == signal.SIGINT:
            os.killpg(first.pid, ended)  # as a terminal does
        else:
            first.kill()
        assert first.wait(timeout=300) == {signal.SIGINT: 130, signal.SIGKILL: -9}[ended]
    finally:
        first.kill()  # a failed test leaves nothing behind that slows the others
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_script_without_a_main_guard_trains_whatever_starts_its_processes(
    run, shards, tmp_path, method
):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        f"multiprocessing.set_start_method({method!r})\n"
        "from pathlib import Path\n"
        "from ijepa.config import Runtime, ShardConfig\n"
        "from ijepa.recipes import load_recipe\n"
        "from ijepa.pretrain import pretrain\n"
        "from ijepa.shard import shard\n"
        "shard('scenes:train=40,val=10', Path('set'), ShardConfig(), Runtime(workers=2))\n"
        f"recipe = load_recipe({str(run / 'config.yaml')!r}, [])\n"
        f"pretrain(Path({str(shards)!r}), Path('run'), recipe, Runtime(device='cpu', workers=2))\n"
    )
    done = subprocess.run(
        [sys.executable, script], env=ALONE | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "stage.json").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_cannot_grow_is_named(images, tmp_path, workers):
    out = tmp_path / "set"
    done = ijepa(
        "shard", images, out, "--workers", workers, "--shard-bytes", "150000", limit_bytes=50_000
    )
    assert done.returncode == 1
    assert "set.partial/" in done.stderr
    assert done.stderr.endswith("File too large.\n")


def test_a_path_that_is_not_utf8_is_one_line_or_works(images, tmp_path, tiny_config):
    odd = os.fsdecode(b"o\xff")
    (tmp_path / odd).symlink_to(images)
    done = ijepa("shard", odd, "set", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["splits"] == {"train": 80}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(tiny_config))
    pretrain = ["pretrain", "--recipe", recipe, "--data", "set", "--out", odd]
    for words in (["shard", odd, odd], pretrain):
        failed = ijepa(*words, cwd=tmp_path)
        assert failed.returncode == 1
        assert failed.stderr.count("\n") == 1
        assert r"o\udcff" in failed.stderr


@pytest.mark.parametrize("device", ["mps", "meta", "xpu"])
def test_a_device_that_is_not_here_is_one_line(device):
    with pytest.raises(IjepaError, match=f"There is no device {device} here; use auto, cpu"):
        pick_device(device)


def test_a_very_long_name_is_shortened_in_an_error(tmp_path):
    done = ijepa("shard", "x" * 10**5, "y", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr) < 3000


def test_ctrl_c_while_workers_start_stops_none_of_them_half_way(tmp_path):
    """Each is signalled as soon as it is forked."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from ijepa.config import Runtime, ShardConfig\n"
        "from ijepa.shard import shard\n"
        "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "config = ShardConfig(shard_bytes=40_000)\n"
        "shard('scenes:train=80,val=0', Path('set'), config, Runtime(workers=2))\n"
    )
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], env=ALONE | path, cwd=tmp_path, timeout=300,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "KeyboardInterrupt" not in done.stderr
    assert len(open_shards(tmp_path / "set").split("train")) == 80


def test_a_helper_that_is_killed_is_one_line():
    killed = pytest.raises(IjepaError, match="killed, most likely for want of memory")
    with killed, process_pool(1) as pool:
        list(pool.map(signal.raise_signal, [signal.SIGKILL]))


def test_helpers_that_are_ended_in_the_middle_say_nothing_and_are_gone(monkeypatch):
    said, kill = [], BaseProcess.kill

    def kill_and_wait(process):  # until it is noticed
        kill(process)
        time.sleep(0.3)

    monkeypatch.setattr(threading, "excepthook", said.append)
    monkeypatch.setattr(BaseProcess, "kill", kill_and_wait)
    before = set(threading.enumerate())
    with process_pool(2) as pool:
        results = pool.map(time.sleep, [0.2] * 100)
        next(results)
        results.close()  # as an error in the middle does
    assert not multiprocessing.active_children()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)
    assert said == []
