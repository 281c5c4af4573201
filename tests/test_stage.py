"""Stages: fresh or not, alone, and never half-written under a final name."""

import contextlib
import dataclasses
import json
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

FORCE = Runtime(force=True)


class Choice(Config):
    number: int = 1


class MoreChoices(Choice):
    letter: str = "a"


def plan(out: Path, number: int = 1, data: str = "d", **facts) -> StagePlan:
    return StagePlan("test", 1, Choice(number=number), {"data": data}, out, **facts)


def changed(plan: StagePlan, **facts) -> StagePlan:
    return dataclasses.replace(plan, **facts)


def make(plan: StagePlan, text: str = "x", *, force: bool = False) -> bool:
    """Make an output, a file or a folder with a file; returns whether there was work to do."""
    with exclusive_work(plan, Runtime(force=force)) as work:
        if work.cached:
            return False
        name = "content" if plan.is_folder else plan.out.name
        (work.folder / name).write_text(text)
        work.publish({"seed": 0})
        return True


def content(out: Path) -> str:
    return (out / "content" if out.is_dir() else out).read_text()


def begin(plan: StagePlan, *names: str, runtime: Runtime = Runtime()) -> Path:  # noqa: B008  # frozen
    """Leave partial work."""
    with exclusive_work(plan, runtime) as work:
        for name in names:
            (work.folder / name).write_text("half")
    return work.folder


def refuse(plan: StagePlan, message: str, *, force: bool = False) -> None:
    with pytest.raises(IjepaError, match=message), exclusive_work(plan, Runtime(force=force)):
        pass


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


both_kinds = pytest.mark.parametrize("is_folder", [False, True])
forced_or_not = pytest.mark.parametrize("force", [False, True])


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(body):
    assert fingerprint_of(body) == fingerprint_of(dict(reversed(body.items())))


@both_kinds
def test_the_same_plan_runs_once_and_another_plan_or_force_runs_again(tmp_path, is_folder):
    out = tmp_path / "out"
    assert make(plan(out, is_folder=is_folder), "first")
    record = record_path(out)
    os.utime(record, (1, 1))
    assert not make(plan(out, is_folder=is_folder), "ignored")
    assert record.stat().st_mtime > 1  # make sees an output newer than what it was made of
    assert make(plan(out, number=2, is_folder=is_folder), "second")
    assert make(plan(out, number=2, data="other", is_folder=is_folder), "third")
    assert content(out) == "third"
    assert read_record(out)["config"] == {"number": 2}
    assert names_in(tmp_path) == ({"out"} if is_folder else {"out", "out.stage.json"})
    assert make(plan(out, number=2, data="other", is_folder=is_folder), force=True)


def test_the_outlook_is_what_then_happens_and_writes_nothing(tmp_path):
    out = tmp_path / "folder" / "out"
    assert outlook(plan(out)) == (WOULD_RUN, "nothing is there yet")
    assert list(tmp_path.iterdir()) == []
    make(plan(out))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in out.parent.iterdir()}
    assert outlook(plan(out)) == (CACHED, "")
    assert outlook(plan(out, number=2)) == (WOULD_RUN, "number was 1, now 2")
    assert outlook(plan(out), force=True) == (WOULD_RUN, "--force")
    with pytest.raises(IjepaError, match="other settings: number was 1, now 2"):
        outlook(plan(out, number=2, precious=True))
    after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in out.parent.iterdir()}
    assert after == before
    out.write_text("harm")
    assert outlook(plan(out)) == (WOULD_RUN, "a file of it was changed or removed")


def test_a_digest_that_changed_is_named_and_not_shown(tmp_path):
    one, other = (plan(tmp_path / "out", data=fingerprint_of(body)) for body in "ab")
    make(one)
    assert outlook(other) == (WOULD_RUN, "the content of --data changed")
    renamed = changed(one, inputs={"source": one.inputs["data"]})
    words = "the source is new; the content of --data is left out"
    assert outlook(renamed) == (WOULD_RUN, words)


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("train 0", "the content of --train changed"),
        ("train 1", "the content of --baseline-train changed"),
        ("test 2", "the content of --baseline-test number 2 changed"),
        ("features 1", "the content of --features number 2 changed"),
        ("result some where/knn.json", "some where/knn.json changed"),
    ],
)
def test_an_input_that_changed_is_named_by_its_option_or_path(tmp_path, role, words):
    one, other = (changed(plan(tmp_path / "out"), inputs={role: name}) for name in "ab")
    make(one)
    assert outlook(other) == (WOULD_RUN, words)


def test_a_finished_output_on_a_read_only_disk_is_cached(tmp_path, monkeypatch):
    made = plan(tmp_path / "out")
    make(made)

    monkeypatch.setattr("ijepa.stage.os.access", lambda *_: False)
    assert not make(made)
    refuse(plan(tmp_path / "out", number=2), "cannot be written to; choose another")


def test_what_a_kill_left_goes_on(tmp_path):
    begin(plan(tmp_path / "out"), "half")
    assert outlook(plan(tmp_path / "out"))[0] == GOES_ON
    assert outlook(plan(tmp_path / "out", number=2))[0] == WOULD_RUN
    dry_run = exclusive_work(plan(tmp_path / "out"), Runtime(dry_run=True))
    with pytest.raises(DryRun, match=r"out: goes on \(it was begun before\)"), dry_run:
        pass


def test_a_failure_leaves_the_old_output_and_the_partial_work(tmp_path):
    out = tmp_path / "out"
    make(plan(out), "old")
    failing = exclusive_work(plan(out, number=2))
    with contextlib.suppress(ZeroDivisionError), failing as work:
        (work.folder / "half").write_text("half")
        raise ZeroDivisionError
    assert out.read_text() == "old"
    with exclusive_work(plan(out, number=2)) as work:
        assert (work.folder / "half").read_text() == "half"
    with exclusive_work(plan(out, number=3)) as work:  # that of another plan is thrown away
        assert not (work.folder / "half").exists()


@pytest.mark.parametrize("place", ["finished", "partial"])
def test_precious_output_of_another_plan_is_kept_unless_forced(tmp_path, place):
    ours, other = (
        plan(tmp_path / "out", number, is_folder=True, precious=True) for number in (1, 2)
    )
    make(ours, "ten hours") if place == "finished" else begin(ours, "content")
    refuse(other, r"number was 1, now 2\. .*--force")
    refuse(changed(ours, config=MoreChoices()), "settings: letter was None, now 'a'")
    with exclusive_work(ours) as work:
        assert work.cached == (place == "finished")
        assert ((ours.out if work.cached else work.folder) / "content").exists()
    with exclusive_work(other, FORCE) as work:
        assert not (work.folder / "content").exists()


@forced_or_not
def test_what_another_stage_or_the_user_made_is_not_replaced(tmp_path, force):
    make(plan(tmp_path / "out", is_folder=True), "ten hours")
    refuse(
        changed(plan(tmp_path / "out", is_folder=True), stage="other"),
        "made by `ijepa test`",
        force=force,
    )
    half = begin(plan(tmp_path / "half"), "content")
    refuse(changed(plan(tmp_path / "half"), stage="other"), "made by `ijepa test`", force=force)
    assert (half / "content").exists()
    (tmp_path / "own").write_text("precious")
    if not force:
        refuse(plan(tmp_path / "own"), "no record that ijepa made it")
        assert (tmp_path / "own").read_text() == "precious"


def test_forced_work_that_was_stopped_goes_on_without_force(tmp_path):
    again = plan(tmp_path / "out", is_folder=True)
    make(again, "old")
    begin(again, "half", runtime=FORCE)
    with exclusive_work(again) as work:
        assert not work.cached
        assert (work.folder / "half").exists()
        (work.folder / "content").write_text("new")
        work.publish({})
    assert not make(again)
    assert content(again.out) == "new"


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


@forced_or_not
@pytest.mark.parametrize("own", [_file, _folder, _link, _link_to_folder, os.mkfifo])
@pytest.mark.parametrize("suffix", [".lock", ".partial", ".outdated", ".stage.json"])
def test_what_a_user_has_under_one_of_our_names_is_neither_written_nor_removed(
    tmp_path, suffix, own, force
):
    own(tmp_path / f"out{suffix}")
    before = _all_in(tmp_path)
    message = r"(in the way|not made by ijepa|is not JSON)[^\n]*$"
    refuse(plan(tmp_path / "out"), message, force=force)
    assert _all_in(tmp_path) == before


def _all_in(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): path.read_text()
        if path.is_file()
        else (path.is_symlink(), path.is_dir())
        for path in folder.rglob("*")
    }


def test_a_link_to_an_output_is_replaced_and_what_it_names_is_kept(tmp_path):
    make(plan(tmp_path / "mine", is_folder=True), "ten hours")
    (tmp_path / "out").symlink_to("mine")
    assert make(plan(tmp_path / "out", number=2, is_folder=True), "new")
    assert content(tmp_path / "mine") == "ten hours"
    assert content(tmp_path / "out") == "new"


def test_half_written_files_of_a_killed_process_are_not_published(tmp_path):
    ours = plan(tmp_path / "out", is_folder=True)
    begin(ours, "content", "stage.json.123.tmp")
    with exclusive_work(ours) as work:
        work.publish({})
    assert names_in(ours.out) == {"content", "stage.json"}


def test_the_seconds_of_an_output_are_those_of_every_process_that_worked_on_it(tmp_path):
    ours = plan(tmp_path / "out", is_folder=True)
    folder = begin(ours, "content")
    for _ in range(2):  # each process worked for an hour, then was killed; a day later it goes on
        begin(ours)
        began = json.loads((folder / "work.json").read_text())["began"]
        os.utime(folder / "content", (began + 3600, began + 3600))
    with exclusive_work(ours) as work:
        work.publish({})
    assert 7200 <= read_record(ours.out)["seconds"] < 7260


def test_a_removal_that_is_killed_leaves_what_is_known_as_ours(tmp_path, monkeypatch):
    begin(plan(tmp_path / "out"), "a", "z")
    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        _die_after(patch, 1)
        make(plan(tmp_path / "out", number=2))
    assert make(plan(tmp_path / "out", number=2))


def test_a_start_that_fails_leaves_nothing_behind_and_blocks_no_other(tmp_path):
    wrong = plan(tmp_path / "out", precious=True)
    with pytest.raises(ValueError, match="no such split"), exclusive_work(wrong):
        raise ValueError("no such split")
    assert list(tmp_path.iterdir()) == []
    assert make(plan(tmp_path / "out", number=2, precious=True))


@both_kinds
@pytest.mark.parametrize("old", [False, True])
def test_killed_at_any_moment_of_publishing_the_same_plan_ends_the_same(
    tmp_path, monkeypatch, is_folder, old
):
    """Every change of a name in turn is where the process dies."""
    for survived in range(20):
        folder = tmp_path / str(survived)
        folder.mkdir()
        out = folder / "out"
        if old:
            make(plan(out, number=2, is_folder=is_folder), "old")
        with monkeypatch.context() as patch:
            moves = _die_after(patch, survived)
            with contextlib.suppress(SystemExit):
                make(plan(out, is_folder=is_folder), "new")
        if out.exists():
            assert content(out) in ({"old", "new"} if old else {"new"})
        make(plan(out, is_folder=is_folder), "new")
        assert content(out) == "new"
        assert read_record(out)["config"] == {"number": 1}
        assert names_in(folder) <= {"out", "out.stage.json"}
        if len(moves) <= survived:
            break
    assert survived >= 4


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


def test_workers_that_outlive_a_killed_process_are_waited_for(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = tmp_path / "out.lock"
    lock.write_text(f"process {ended.pid} on {socket.gethostname()}")
    worker = subprocess.Popen(
        ["flock", str(lock), "sh", "-c", "echo held; sleep 1"], stdout=subprocess.PIPE
    )
    assert worker.stdout.readline() == b"held\n"
    assert make(plan(tmp_path / "out"), "mine")
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
        make(plan(tmp_path / "out"), "mine")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert make(plan(tmp_path / "out"), "mine")


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("cut")])
def test_a_folder_that_lost_a_part_is_made_again(tmp_path, harm):
    ours = plan(tmp_path / "out", is_folder=True)
    make(ours, "whole")
    harm(ours.out / "content")
    assert make(ours, "whole")
    assert content(ours.out) == "whole"


@forced_or_not
@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "no name for an output"),
        ("/", "no name for an output"),
        ("..", "no name for an output"),
        ("folder", "folder is a folder, and `ijepa test` makes a file; name one, such as"),
        ("file/a/b", "file is a file, so file/a/b cannot stand in it"),
    ],
)
def test_a_place_where_an_output_cannot_stand_is_refused_before_any_work(
    tmp_path, monkeypatch, force, out, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    refuse(plan(Path(out)), message, force=force)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
