"""When a stage's output is finished, up to date, and ours alone to write.

A stage works in `<out>.partial/` and publishes by renaming. Killed at any moment, it leaves nothing
half-written under its final name; started again with the same plan, it finds its partial work.
"""

import contextlib
import functools
import logging
import operator
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ijepa.changes import changes
from ijepa.config import RUNTIME, Runtime
from ijepa.errors import IjepaError
from ijepa.files import fingerprint_of, lock, naming, read_json, sibling, write_json
from ijepa.records import (
    NOTES,
    changed_file,
    checkout_commit,
    file_facts,
    is_record,
    library_versions,
    notes_in,
    read_record,
    record_path,
    remove,
)

TRACKING = "tracking"  # folder in that of a run, which trackers may change after it is finished
CACHED, GOES_ON, WOULD_RUN = "cached", "goes on", "would run"  # what `outlook` answers
NEW = "nothing is there yet"  # and why, for most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagePlan:
    """What a stage is about to make: everything that its result depends on, and where it goes."""

    stage: str  # the verb, such as `extract`
    version: int  # raised whenever the same configuration would give another result
    config: BaseModel  # the choices that change the result (never device or workers)
    inputs: Mapping[str, str]  # fingerprints of the inputs by role, such as `{"data": "3f..."}`
    out: Path  # the final path, a folder or one file
    precious: bool = False  # an output or partial work of another plan is replaced by --force only
    is_folder: bool = False
    # Settings that do not change the result, such as how often health is checked, by dotted name;
    # the fingerprint takes the value given here instead.
    ignored: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits, equal for equal plans, whatever `out` and the ignored settings."""
        body = self.described()
        for name, value in self.ignored.items():
            *groups, last = name.split(".")
            functools.reduce(operator.getitem, groups, body["config"])[last] = value
        return fingerprint_of(body)

    def described(self) -> dict[str, Any]:
        """The plan as JSON, for the record."""
        return {
            "stage": self.stage,
            "version": self.version,
            "config": self.config.model_dump(mode="json"),
            "inputs": dict(self.inputs),
        }

    def changes(self, record: Mapping[str, Any]) -> str:
        """How it differs from the plan of a record, in words; nothing if it does not."""
        return changes(self.described(), record, self.ignored)


@dataclass
class Work:
    """An output being made, held alone by this process: write in `folder`, then publish."""

    plan: StagePlan
    folder: Path  # `<out>.partial/`; may hold what an interrupted run left
    cached: bool  # the output is there already, made by the same plan: do nothing
    # Start time, moved back by the time that earlier attempts already spent.
    started: float = field(default_factory=time.time)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Add facts to the note of this work, see `work_note`."""
        write_json(self.folder / "work.json", {**(work_note(self.folder) or {}), **facts})

    def publish(self, facts: Mapping[str, Any], digests: Mapping[str, str] | None = None) -> None:
        """Make the whole folder the output, or the file of the output's name in it alone.

        `facts` (device, seed, ...) go into its record; `digests` are sha256 of files that need not
        be read again for it, by name.
        """
        known, names = digests or {}, [self.plan.out.name]
        if self.plan.is_folder:
            names = _files(self.folder)
        else:
            with (self.folder / names[0]).open("rb") as file:
                os.fsync(file.fileno())
        record = {
            **self.plan.described(),
            "fingerprint": self.plan.fingerprint,
            "libraries": library_versions(),
            "commit": checkout_commit(),
            "seconds": round(time.time() - self.started, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "files": {name: file_facts(self.folder / name, known.get(name)) for name in names},
            **facts,
        }
        write_json(_record_when_finished(self.plan, self.folder), record)
        _move(self.plan, self.folder)


class DryRun(Exception):  # noqa: N818  # no error: it ends a stage before its work
    """Raised in place of work where `Runtime.dry_run` is set; the state is one of `outlook`."""

    def __init__(self, plan: StagePlan, state: str, why: str) -> None:
        super().__init__(f"{plan.out}: {state}{why and f' ({why})'}")
        self.plan, self.state, self.why = plan, state, why


@contextlib.contextmanager
def exclusive_work(plan: StagePlan, runtime: Runtime = RUNTIME) -> Iterator[Work]:
    """Hold `plan.out` alone while making it.

    `runtime.force` rebuilds even if the output is up to date, and replaces what ijepa did not make;
    `runtime.dry_run` only says what would be done.

    Yields:
        The work. If `work.cached`, return at once (the record's time is now, so that make sees an
        output newer than its inputs); else write in `work.folder` and publish.

    Raises:
        IjepaError: another process works on it; the output, or a name beside it that is needed,
            exists and was not made by ijepa; it is precious and was made by another plan; or the
            path cannot be written to.
        DryRun: for `dry_run`; nothing is written.
    """
    if runtime.dry_run:
        raise DryRun(plan, *outlook(plan, force=runtime.force))
    _refuse_place(plan)
    folder = sibling(plan.out, ".partial")
    if plan.out.parent.is_dir() and not os.access(plan.out.parent, os.W_OK):
        if outlook(plan, force=runtime.force)[0] != CACHED:
            raise IjepaError(f"{plan.out.parent} cannot be written to; choose another output.")
        yield Work(plan, folder, cached=True)
        return
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    with lock(plan.out):
        _finish_publishing(plan, folder)
        state, why = outlook(plan, force=runtime.force)
        if state == CACHED:
            if runtime.track != "none":
                log.warning("--track has no effect: %s is finished already", plan.out)
            record_path(plan.out).touch()
            yield Work(plan, folder, cached=True)
            return
        if runtime.about:
            log.info("%s", runtime.about if why == NEW else f"{runtime.about} ({why})")
        earlier = _open_folder(plan, folder, runtime.force)
        try:
            work = Work(plan, folder, cached=False, started=time.time() - earlier)
            with naming(folder), _noting(work):
                yield work
        finally:
            if folder.exists() and not _files(folder):  # it failed before it made anything
                remove(folder)


@contextlib.contextmanager
def _noting(work: Work) -> Iterator[None]:
    """Note the error that ends the work, for pages of a run that broke."""
    try:
        yield
    except (IjepaError, OSError, RuntimeError, MemoryError) as error:  # a GPU's is a RuntimeError
        with contextlib.suppress(OSError, IjepaError):  # it may be published, or the disk full
            work.note({"ended": str(error) or type(error).__name__})
        raise


def outlook(plan: StagePlan, *, force: bool = False) -> tuple[str, str]:
    """`cached`, `goes on` or `would run`, and why (empty for `cached`); nothing is written.

    Refuses what `exclusive_work` would refuse.
    """
    _refuse_place(plan)
    folder = sibling(plan.out, ".partial")
    note, record = work_note(folder), read_record(plan.out)
    is_begun = note is not None and note.get("fingerprint") == plan.fingerprint
    is_forced = is_begun and bool(note and note.get("forced"))  # goes on without --force, too
    if not force and not is_forced and is_fresh(plan):
        return CACHED, ""
    for path, noted in ((plan.out, record), (folder, note)):
        if noted is not None and noted.get("stage") != plan.stage:
            raise IjepaError(  # even with --force: features over a run are almost surely a mistake
                f"{path} was made by `ijepa {noted.get('stage')}`; choose another output, or "
                f"remove it yourself."
            )
    if force:
        return WOULD_RUN, "--force"
    has_files = bool(_files(folder))  # else it was refused before it made anything
    _refuse_to_replace(plan, record, note if has_files else None, is_forced)
    if is_begun and has_files:
        return GOES_ON, "it was begun before"
    if record is None:
        return WOULD_RUN, NEW
    return WOULD_RUN, plan.changes(record) or "a file of it was changed or removed"


def is_fresh(plan: StagePlan) -> bool:
    """Does `plan.out` hold what this plan makes, complete and unchanged?"""
    record = read_record(plan.out)
    if record is None or record.get("fingerprint") != plan.fingerprint:
        return False
    if changed := changed_file(plan.out, record):
        log.warning("%s was changed after `ijepa %s` made it.", changed, plan.stage)
    return changed is None


def _refuse_place(plan: StagePlan) -> None:
    """Refuse a path that could not be published to, before anything is computed.

    Also names beside `out` that we need and did not make: `--force` does not remove these.
    """
    out = plan.out
    if not out.name or out.name == "..":
        raise IjepaError(f"{out} is no name for an output; choose another.")
    if any("\ud800" <= character <= "\udfff" for character in str(out)):
        raise IjepaError(
            f"{out} is not UTF-8, which the libraries that write it need; choose another output."
        )
    if out.is_dir() and not plan.is_folder:
        raise IjepaError(
            f"{out} is a folder, and `ijepa {plan.stage}` makes a file; name one, such as "
            f"{out / 'NAME'}."
        )
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir():
        raise IjepaError(f"{above} is a file, so {out} cannot stand in it; choose another output.")
    folders = (sibling(out, ".partial"), sibling(out, ".outdated"))
    taken = [path for path in folders if not _is_free(path)]
    record = sibling(out, ".stage.json")
    if not plan.is_folder and os.path.lexists(record) and not is_record(record):
        taken.append(record)
    if taken:
        raise IjepaError(
            f"{taken[0]} is in the way: ijepa needs that name and did not make it; move it "
            f"elsewhere, or choose another output."
        )


def _is_free(folder: Path) -> bool:
    """Is there nothing of that name, or a folder that is empty or was made by a stage?"""
    if not os.path.lexists(folder):
        return True
    is_folder = folder.is_dir() and not folder.is_symlink()
    return is_folder and (any(notes_in(folder)) or not any(folder.iterdir()))


def _refuse_to_replace(
    plan: StagePlan,
    record: Mapping[str, Any] | None,
    note: Mapping[str, Any] | None,
    is_forced: bool,
) -> None:
    """Keep what ijepa did not make, and precious outputs or partial work of another plan."""
    out = plan.out
    is_empty_folder = out.is_dir() and not any(out.iterdir())
    if os.path.lexists(out) and not is_empty_folder and not record_path(out).exists():
        raise IjepaError(
            f"{out} exists and has no record that ijepa made it; "
            f"choose another output, or replace it with --force."
        )
    if not plan.precious or is_forced:
        return
    for found, made in ((out, record), (sibling(out, ".partial"), note)):
        if made is not None and made.get("fingerprint") != plan.fingerprint:
            more = "for more epochs go on with --prolong, " if plan.stage == "pretrain" else ""
            raise IjepaError(
                f"{found} was built with other settings: {plan.changes(made)}. Choose another "
                f"output, {more}rebuild it with --replace, or discard it with --force."
            )
    # A run is not trained again because a file of it was removed.
    if record and (changed := changed_file(out, record)):
        raise IjepaError(
            f"{changed} was changed, damaged or removed after `ijepa {plan.stage}` made it. "
            f"Restore it, choose another output, or rebuild {out} with --force."
        )


def work_note(folder: Path) -> dict[str, Any] | None:
    """The note of the partial work in `folder`, with its plan; None if there is no such work."""
    note = folder / "work.json"
    body = read_json(note) if note.exists() else None
    if body is not None and not isinstance(body.get("config", {}), dict):
        raise IjepaError(f"{note} is damaged: its config is no object. Remove {folder}.")
    return body


def _files(folder: Path) -> list[str]:
    """Names of all files in a folder but its notes, and what a tracker may change later."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in NOTES)
    names = (path.relative_to(folder) for path in paths)
    return sorted(str(name) for name in names if name.parts[0] != TRACKING)


def _open_folder(plan: StagePlan, folder: Path, force: bool) -> float:
    """Keep the partial work of the same plan, throw away that of any other.

    Returns the seconds that earlier processes worked: each to the last file that it wrote.
    """
    note, earlier = work_note(folder), 0.0
    if force or note is None or note.get("fingerprint") != plan.fingerprint:
        remove(folder)
        note = {**plan.described(), "fingerprint": plan.fingerprint, "forced": force}
    elif begun := note.get("began"):
        written = [(folder / name).stat().st_mtime for name in _files(folder)]
        earlier = note.get("worked_seconds", 0.0) + max([0.0, *(when - begun for when in written)])
    folder.mkdir(exist_ok=True)
    for path in folder.rglob("*.tmp"):  # of `whole_file`, in a process that was killed
        path.unlink()
    now = {"began": time.time(), "worked_seconds": earlier, "ended": ""}
    write_json(folder / "work.json", note | now)
    return earlier


def _record_when_finished(plan: StagePlan, folder: Path) -> Path:
    """The record in a work folder that says that the work is finished."""
    return folder / ("stage.json" if plan.is_folder else f"{plan.out.name}.stage.json")


def _finish_publishing(plan: StagePlan, folder: Path) -> None:
    """Do what a kill in the middle of publishing left undone."""
    record = _record_when_finished(plan, folder)
    if record.exists() and read_json(record).get("fingerprint") == plan.fingerprint:
        _move(plan, folder)
    with contextlib.suppress(OSError):  # not there, or not empty
        folder.rmdir()
    outdated = sibling(plan.out, ".outdated")
    if (outdated / "stage.json").exists() and not plan.out.exists():
        outdated.rename(plan.out)
    else:
        remove(outdated)


def _move(plan: StagePlan, folder: Path) -> None:
    """Move finished work to its final name; killed at any moment, `_finish_publishing` goes on."""
    out, outdated = plan.out, sibling(plan.out, ".outdated")
    if plan.is_folder:
        (folder / "work.json").unlink(missing_ok=True)
        if os.path.lexists(out):
            out.rename(outdated)
        folder.rename(out)
        remove(outdated)
        return
    made, record = folder / out.name, sibling(out, ".stage.json")
    if made.exists():
        record.unlink(missing_ok=True)  # no file ever stands beside another's record
        made.replace(out)
    for path in folder.iterdir():  # before the record goes, which tells a rerun to finish this
        if path.name != record.name:
            remove(path)
    (folder / record.name).replace(record)
    folder.rmdir()
