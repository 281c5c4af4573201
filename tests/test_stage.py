"""Stages: fresh or not, alone, and never half-written under a final name."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ijepa.config import Config, Runtime
from ijepa.errors import IjepaError
from ijepa.files import fingerprint_of
from ijepa.records import read_record, record_path
from ijepa.stage import CACHED, GOES_ON, WOULD_RUN, DryRun, StagePlan, exclusive_work, outlook


class Choice(Config):
    number: int = 1


def plan(out: Path, number: int = 1, data: str = "d") -> StagePlan:
    return StagePlan("test", 1, Choice(number=number), {"data": data}, out)


def make_file(plan: StagePlan, text: str, *, force: bool = False) -> bool:
    """Make a one-file output; returns whether there was work to do."""
    with exclusive_work(plan, Runtime(force=force)) as work:
        if work.cached:
            return False
        (work.folder / plan.out.name).write_text(text)
        work.publish_file({"seed": 0})
        return True


def fail_halfway(plan: StagePlan) -> None:
    with exclusive_work(plan) as work:
        (work.folder / "half").write_text("half")
        raise ZeroDivisionError


def of_folder(plan: StagePlan) -> StagePlan:
    return dataclasses.replace(plan, is_folder=True)


def make_folder(plan: StagePlan, text: str) -> bool:
    with exclusive_work(of_folder(plan)) as work:
        if work.cached:
            return False
        (work.folder / "content").write_text(text)
        work.publish_folder({"seed": 0})
        return True


class MoreChoices(Choice):
    letter: str = "a"


def test_a_setting_that_an_old_record_lacks_is_named(tmp_path):
    old = dataclasses.replace(plan(tmp_path / "out"), precious=True)
    make_file(old, "text")
    new = dataclasses.replace(old, config=MoreChoices())
    with pytest.raises(IjepaError, match="settings: letter, a new setting, is 'a'"):
        make_file(new, "text")


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(body):
    assert fingerprint_of(body) == fingerprint_of(dict(reversed(body.items())))


@pytest.mark.parametrize("make", [make_file, make_folder])
def test_the_same_plan_runs_once_and_another_plan_runs_again(tmp_path, make):
    out = tmp_path / "out"
    assert make(plan(out), "first")
    assert not make(plan(out), "ignored")
    assert make(plan(out, number=2), "second")
    assert make(plan(out, number=2, data="other"), "third")
    content = out.read_text() if out.is_file() else (out / "content").read_text()
    assert content == "third"
    assert read_record(out)["config"] == {"number": 2}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == ({"out"} if out.is_dir() else {"out", "out.stage.json"})


def test_force_runs_again(tmp_path):
    make_file(plan(tmp_path / "out"), "first")
    assert make_file(plan(tmp_path / "out"), "second", force=True)


def test_the_outlook_is_what_then_happens_and_writes_nothing(tmp_path):
    out = tmp_path / "folder" / "out"
    assert outlook(plan(out)) == (WOULD_RUN, "nothing is there yet")
    assert list(tmp_path.iterdir()) == []
    make_file(plan(out), "made")
    before = {path: path.stat() for path in out.parent.iterdir()}
    assert outlook(plan(out)) == (CACHED, "")
    assert outlook(plan(out, number=2)) == (WOULD_RUN, "number was 1, now 2")
    assert outlook(plan(out), force=True) == (WOULD_RUN, "--force")
    with pytest.raises(IjepaError, match="other settings: number was 1, now 2"):
        outlook(dataclasses.replace(plan(out, number=2), precious=True))
    assert {path: path.stat() for path in out.parent.iterdir()} == before
    out.write_text("harm")
    assert outlook(plan(out)) == (WOULD_RUN, "a file of it was changed or removed")


def test_what_a_kill_left_goes_on(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_halfway(plan(tmp_path / "out"))
    assert outlook(plan(tmp_path / "out"))[0] == GOES_ON
    assert outlook(plan(tmp_path / "out", number=2))[0] == WOULD_RUN
    with (
        pytest.raises(DryRun, match=r"out: goes on \(it was begun before\)"),
        exclusive_work(plan(tmp_path / "out"), Runtime(dry_run=True)),
    ):
        pass


@pytest.mark.parametrize("make", [make_file, make_folder])
def test_a_cached_answer_makes_the_record_newer_than_what_it_was_made_of(tmp_path, make):
    make(plan(tmp_path / "out"), "made")
    record = record_path(tmp_path / "out")
    os.utime(record, (1, 1))
    assert not make(plan(tmp_path / "out"), "ignored")
    assert record.stat().st_mtime > 1


def test_a_failure_leaves_the_old_output_and_the_partial_work(tmp_path):
    out = tmp_path / "out"
    make_file(plan(out), "old")
    with pytest.raises(ZeroDivisionError):
        fail_halfway(plan(out, number=2))
    assert out.read_text() == "old"
    with exclusive_work(plan(out, number=2)) as work:
        assert (work.folder / "half").read_text() == "half"


def test_partial_work_of_another_plan_is_thrown_away(tmp_path):
    with exclusive_work(plan(tmp_path / "out")) as work:
        (work.folder / "half").write_text("half")
    with exclusive_work(plan(tmp_path / "out", number=2)) as work:
        assert not (work.folder / "half").exists()


@pytest.mark.parametrize("place", ["finished", "partial"])
def test_precious_output_of_another_plan_is_kept_unless_forced(tmp_path, place):
    out = tmp_path / "out"
    ours = of_folder(plan(out))
    with exclusive_work(ours) as work:
        (work.folder / "content").write_text("ten hours")
        if place == "finished":
            work.publish_folder({})
    other = dataclasses.replace(of_folder(plan(out, number=2)), precious=True)
    with pytest.raises(IjepaError, match=r"number was 1, now 2\. .*--force"), exclusive_work(other):
        pass
    with exclusive_work(dataclasses.replace(ours, precious=True)) as work:
        assert work.cached == (place == "finished")
        assert ((out if work.cached else work.folder) / "content").read_text() == "ten hours"
    with exclusive_work(other, Runtime(force=True)) as work:
        assert not (work.folder / "content").exists()


@pytest.mark.parametrize("force", [False, True])
def test_what_another_stage_made_is_never_replaced(tmp_path, force):
    out = tmp_path / "out"
    make_folder(plan(out), "ten hours")
    other = dataclasses.replace(of_folder(plan(out)), stage="other")
    with (
        pytest.raises(IjepaError, match="was made by `ijepa test`"),
        exclusive_work(other, Runtime(force=force)),
    ):
        pass
    with exclusive_work(plan(tmp_path / "half")) as work:
        (work.folder / "content").write_text("five hours")
    other = dataclasses.replace(plan(tmp_path / "half"), stage="other")
    with pytest.raises(IjepaError, match="made by `ijepa test`"), exclusive_work(other):
        pass
    assert (work.folder / "content").exists()


def test_forced_work_that_was_stopped_goes_on_without_force(tmp_path):
    out = tmp_path / "out"
    make_folder(plan(out), "old")
    again = of_folder(plan(out))
    with exclusive_work(again, Runtime(force=True)) as work:
        (work.folder / "half").write_text("half")
    with exclusive_work(again) as work:
        assert not work.cached
        assert (work.folder / "half").exists()
        (work.folder / "content").write_text("new")
        work.publish_folder({})
    with exclusive_work(again) as work:
        assert work.cached
    assert _content(out) == "new"


def test_a_folder_of_the_users_own_called_outdated_is_kept(tmp_path):
    (tmp_path / "out.outdated").mkdir()
    (tmp_path / "out.outdated" / "precious").touch()
    with pytest.raises(IjepaError, match=r"outdated is in the way"):
        make_folder(plan(tmp_path / "out"), "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out.outdated", "precious"]


def _file(path: Path) -> None:
    path.write_text("precious")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_text("precious")


def _link(path: Path) -> None:
    path.with_name("mine").write_text("precious")
    path.symlink_to("mine")


def _link_to_folder(path: Path) -> None:
    _folder(path.with_name("mine"))
    path.symlink_to("mine")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("own", [_file, _folder, _link, _link_to_folder, _pipe])
@pytest.mark.parametrize("suffix", [".lock", ".partial", ".outdated", ".stage.json"])
def test_what_a_user_has_under_one_of_our_names_is_neither_written_nor_removed(
    tmp_path, suffix, own, force
):
    own(tmp_path / f"out{suffix}")
    before = _all_in(tmp_path)
    with pytest.raises(IjepaError, match=r"(in the way|not made by ijepa|is not JSON)[^\n]*$"):
        make_file(plan(tmp_path / "out"), "x", force=force)
    assert _all_in(tmp_path) == before


def _all_in(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): path.read_text()
        if path.is_file()
        else (path.is_symlink(), path.is_dir())
        for path in folder.rglob("*")
    }


def test_a_link_to_an_output_is_replaced_and_what_it_names_is_kept(tmp_path):
    make_folder(plan(tmp_path / "mine"), "ten hours")
    (tmp_path / "out").symlink_to("mine")
    assert make_folder(plan(tmp_path / "out", number=2), "new")
    assert _content(tmp_path / "mine") == "ten hours"
    assert _content(tmp_path / "out") == "new"


def test_half_written_files_of_a_killed_process_are_not_published(tmp_path):
    ours = of_folder(plan(tmp_path / "out"))
    with exclusive_work(ours) as work:
        (work.folder / "content").write_text("kept")
        (work.folder / "stage.json.123.tmp").write_text("half")
    with exclusive_work(ours) as work:
        work.publish_folder({})
    assert {path.name for path in ours.out.iterdir()} == {"content", "stage.json"}


def test_a_removal_that_is_killed_leaves_what_is_known_as_ours(tmp_path, monkeypatch):
    with exclusive_work(plan(tmp_path / "out")) as work:
        for name in ("a", "z"):
            (work.folder / name).write_text("half")
    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        _die_after(patch, 1)
        make_file(plan(tmp_path / "out", number=2), "x")
    assert make_file(plan(tmp_path / "out", number=2), "x")


def test_a_start_that_fails_leaves_no_folder_behind(tmp_path):
    with pytest.raises(ValueError, match="no such split"), exclusive_work(plan(tmp_path / "out")):
        raise ValueError("no such split")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", [".", "/", ".."])
def test_an_output_without_a_name_is_refused(out):
    with pytest.raises(IjepaError, match="no name for an output"):
        make_file(plan(Path(out)), "x")


@pytest.mark.parametrize("make", [make_file, make_folder])
@pytest.mark.parametrize("old", [False, True])
def test_killed_at_any_moment_of_publishing_the_same_plan_ends_the_same(
    tmp_path, monkeypatch, make, old
):
    """Every change of a name in turn is where the process dies."""
    for survived in range(20):
        folder = tmp_path / str(survived)
        folder.mkdir()
        out = folder / "out"
        if old:
            make(plan(out, number=2), "old")
        with monkeypatch.context() as patch:
            moves = _die_after(patch, survived)
            with contextlib.suppress(SystemExit):
                make(plan(out), "new")
        if out.exists():
            assert _content(out) in ({"old", "new"} if old else {"new"})
        make(plan(out), "new")
        assert _content(out) == "new"
        assert read_record(out)["config"] == {"number": 1}
        assert {path.name for path in folder.iterdir()} <= {"out", "out.stage.json"}
        if len(moves) <= survived:
            break
    assert survived >= 4


def _content(out: Path) -> str:
    return (out / "content" if out.is_dir() else out).read_text()


def _die_after(patch, survived: int) -> list[str]:
    """Raise SystemExit, which cleans nothing up, at the next rename or removal."""
    moves: list[str] = []

    def guard(method):
        def call(path, *arguments, **options):
            if path.suffix != ".lock":
                moves.append(f"{method.__name__} {path}")
                if len(moves) > survived:
                    raise SystemExit
            return method(path, *arguments, **options)

        return call

    for name in ("replace", "rename", "unlink"):
        patch.setattr(Path, name, guard(getattr(Path, name)))
    return moves


def test_what_we_did_not_make_is_not_replaced(tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(IjepaError, match="no record that ijepa made it"):
        make_file(plan(tmp_path / "out"), "new")
    assert (tmp_path / "out").read_text() == "precious"


def test_a_plan_that_was_refused_before_it_made_anything_blocks_no_other(tmp_path):
    wrong = dataclasses.replace(plan(tmp_path / "out"), precious=True)
    with pytest.raises(ValueError, match="no such split"), exclusive_work(wrong):
        raise ValueError("no such split")
    mended = dataclasses.replace(plan(tmp_path / "out", number=2), precious=True)
    with exclusive_work(mended) as work:
        assert not work.cached


def test_workers_that_outlive_a_killed_process_are_waited_for(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = tmp_path / "out.lock"
    lock.write_text(f"process {ended.pid} on {socket.gethostname()}")
    worker = subprocess.Popen(
        ["flock", str(lock), "sh", "-c", "echo held; sleep 1"], stdout=subprocess.PIPE
    )
    assert worker.stdout.readline() == b"held\n"
    assert make_file(plan(tmp_path / "out"), "mine")
    worker.wait()
    worker.stdout.close()


def test_a_lock_that_a_killed_process_left_is_written_anew(tmp_path):
    lock = tmp_path / "out.lock"
    lock.write_text("process 1234567 on another.machine.of.a.long.name")
    with exclusive_work(plan(tmp_path / "out")):
        assert lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_second_process_is_refused_by_name_and_a_killed_one_holds_nothing(tmp_path):
    script = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_stage import plan
        from ijepa.stage import exclusive_work
        with exclusive_work(plan(Path({str(tmp_path / "out")!r}))):
            print("held", flush=True)
            time.sleep(60)
    """)
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(IjepaError, match=f"is being written by process {holder.pid} on"):
        make_file(plan(tmp_path / "out"), "mine")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert make_file(plan(tmp_path / "out"), "mine")


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("cut")])
def test_a_folder_that_lost_a_part_is_made_again(tmp_path, harm):
    out = tmp_path / "out"
    make_folder(plan(out), "whole")
    harm(out / "content")
    assert make_folder(plan(out), "whole")
    assert (out / "content").read_text() == "whole"


@pytest.mark.parametrize("force", [False, True])
def test_a_place_where_an_output_cannot_stand_is_refused_before_any_work(tmp_path, force):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    for out, found in (
        (
            tmp_path / "folder",
            "folder is a folder, and `ijepa test` makes a file; name one, such as",
        ),
        (tmp_path / "file" / "a" / "b", "file is a file, so .*/file/a/b cannot stand in it"),
    ):
        with (
            pytest.raises(IjepaError, match=found),
            exclusive_work(plan(out), Runtime(force=force)),
        ):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
