"""When is a stage's output finished, fresh, and ours alone to write.

A stage works in `<out>.partial/`, and publishes by renaming. Killed at any moment it leaves nothing
under its final name that is not whole; started again with the same plan it finds its partial work.
"""

import contextlib
import functools
import hashlib
import json
import logging
import operator
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel

from ijepa.errors import IjepaError
from ijepa.lock import lock
from ijepa.versions import library_versions

HALF_WRITTEN = re.compile(r".+\.\d+\.tmp")  # names that `whole_file` gives
NOTES = ("work.json", "stage.json")  # of a work folder: what it is for, and that it is finished
SMALL_BYTES = 2**20  # read again whenever it is asked whether an output is as it was made

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagePlan:
    """What a stage is about to make: everything that its result depends on, and where it goes.

    Attributes:
        stage: the verb, such as `extract`.
        version: raised whenever the same configuration would give another result.
        config: what the user chose and what changes the result (never device or workers).
        inputs: fingerprints of what is read, by role, such as `{"data": "3f..."}`.
        out: the final path, a folder or one file.
        precious: what another plan made there, whole or partly, is replaced by `--force` only.
        is_folder: is `out` a folder, or one file?
        beside: settings of `config` that leave the result as it is, such as how often a run is
            watched, by dotted name; with the value that the fingerprint takes for each.
    """

    stage: str
    version: int
    config: BaseModel
    inputs: Mapping[str, str]
    out: Path
    precious: bool = False
    is_folder: bool = False
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; equal plans, equal digits, whatever `out` and `beside` are."""
        body = self.described()
        for name, value in self.beside.items():
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


@dataclass
class Work:
    """An output being made, held alone by this process.

    Attributes:
        plan: what is being made.
        folder: `<out>.partial/`, to write in; may hold what an interrupted run left.
        cached: the output is there already, made by the same plan: do nothing.
        lock: descriptor of the lock, for processes that write in `folder`: as long as one of them
            runs, nobody else begins.
        started: when this process began, seconds since the epoch.
    """

    plan: StagePlan
    folder: Path
    cached: bool
    lock: int = -1
    started: float = field(default_factory=time.time)

    def publish_folder(
        self, facts: Mapping[str, Any], digests: Mapping[str, str] | None = None
    ) -> None:
        """Make the whole work folder the output.

        Args:
            facts: device, seed, ...; they go into its record.
            digests: sha256 of files that need not be read again for it, by name.
        """
        known = digests or {}
        files = {
            name: _file_facts(self.folder / name, known.get(name)) for name in _sizes(self.folder)
        }
        write_json(self.folder / "stage.json", self._record(facts, files))
        _move_folder(self.folder, self.plan.out)

    def publish_file(self, facts: Mapping[str, Any]) -> None:
        """Make the file of the output's name the output; the rest of the folder is thrown away."""
        out = self.plan.out
        _sync(self.folder / out.name)
        files = {out.name: _file_facts(self.folder / out.name)}
        write_json(self.folder / record_path(out).name, self._record(facts, files))
        _move_file(self.folder, out)

    def _record(self, facts: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
        body = {
            **self.plan.described(),
            "fingerprint": self.plan.fingerprint,
            "libraries": library_versions(),
            "seconds": round(time.time() - self.started, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "files": files,
            **facts,
        }
        plain = json.loads(json.dumps(body))  # as it will be read, keys of mappings as text
        return body | {"seal": fingerprint_of(plain)}


# Told of every plan in place of work, see `foresight`; returns if the output is there already.
foreseen: ContextVar[Callable[[StagePlan, bool], None] | None] = ContextVar(
    "foreseen", default=None
)


@contextlib.contextmanager
def exclusive_work(plan: StagePlan, *, force: bool = False) -> Iterator[Work]:
    """Hold `plan.out` alone while making it.

    Args:
        plan: what to make.
        force: make it again even if it is there, and replace what we did not make.

    Yields:
        The work. If `work.cached`, return at once; else write in `work.folder` and publish.

    Raises:
        IjepaError: another process works on it, something that is not ours stands there or under
            one of the names beside it, or something precious that another plan made; or it cannot
            stand there.
    """
    _refuse_place(plan)
    if tell := foreseen.get():
        tell(plan, force)
        yield Work(plan, _sibling(plan.out, ".partial"), cached=True)
        return
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    with lock(plan.out) as held:
        folder = _sibling(plan.out, ".partial")
        _refuse_foreign_work(plan, folder)
        _finish_publishing(plan, folder)
        if not force and is_fresh(plan) and not _is_forced(plan, folder):
            yield Work(plan, folder, cached=True)
            return
        _refuse_another_stages(plan, folder)
        if not force:
            _refuse_foreign(plan.out)
            if plan.precious and not _is_forced(plan, folder):
                _refuse_other(plan, plan.out, read_record(plan.out))
                _refuse_changed(plan)
                if _sizes(folder):  # else it was refused before it made anything
                    _refuse_other(plan, folder, _note(folder))
        _open_folder(plan, folder, force)
        try:
            with naming(folder):
                yield Work(plan, folder, cached=False, lock=held)
        finally:
            if folder.exists() and not _sizes(folder):  # it failed before it made anything
                _remove(folder)


def remove_output(out: Path) -> bool:
    """Remove what a stage made at `out`, its record and unfinished work; leave all else alone.

    Returns:
        Was there any of it?

    Raises:
        IjepaError: a stage is making it, or a file `<out>.lock` is not ours.
    """
    beside = _sibling(out, ".stage.json")
    work = (_sibling(out, ".partial"), _sibling(out, ".outdated"))
    found = [path for path in work if not path.is_symlink() and any(_notes_in(path))]
    if _is_record(out / "stage.json"):
        found.append(out)
    elif not out.is_dir() and _is_record(beside):
        found += [out, beside]
    lock_left = _sibling(out, ".lock").is_file()
    if found or lock_left:
        with lock(out):
            for path in found:
                _remove(path)
    return bool(found)


def is_fresh(plan: StagePlan) -> bool:
    """Does `plan.out` hold what this very plan makes, and all of it, as it was made?"""
    record = read_record(plan.out)
    if record is None or record.get("fingerprint") != plan.fingerprint:
        return False
    changed = changed_file(plan.out, record)
    if changed:
        log.warning("%s is not as `ijepa %s` made it.", changed, plan.stage)
    return changed is None


def changed_file(out: Path, record: Mapping[str, Any], names: Collection[str] = ()) -> Path | None:
    """The first file of a finished output that is not what its record says; None if all are.

    Args:
        out: the output.
        record: what `read_record` found there.
        names: of a folder's files, to look at these alone.
    """
    for name, facts in record.get("files", {}).items():
        path = out / name if out.is_dir() else out
        if (not names or name in names) and not _is_as_made(path, facts):
            return path
    return None


def refuse_changed(out: Path, *names: str) -> None:
    """See that some files of a finished output are what was made; nothing without a record.

    Raises:
        IjepaError: naming the file.
    """
    changed = changed_file(out, read_record(out) or {}, names)
    if changed:
        raise IjepaError(
            f"{changed} was changed or damaged after it was made. Restore it, or rebuild {out}."
        )


def read_record(out: Path) -> dict[str, Any] | None:
    """The `stage.json` of a finished output; None if there is no finished output at `out`.

    Raises:
        IjepaError: it is not what a stage wrote.
    """
    path = record_path(out)
    if not (out.exists() and path.exists()):
        return None
    record = read_json(path)
    body = {name: value for name, value in record.items() if name != "seal"}
    # Records of earlier versions have no seal, and tell the size of a file where it is a folder's.
    is_sealed = "seal" in record or not all(isinstance(f, int) for f in _values(record, "files"))
    if is_sealed and record.get("seal") != fingerprint_of(body):
        raise IjepaError(
            f"{path} was changed or damaged after it was written. Restore it, or remove it and "
            f"rebuild {out} with --force."
        )
    return record


def record_path(out: Path) -> Path:
    """Where the record of `out` stands: inside a folder, beside a file."""
    return out / "stage.json" if out.is_dir() else _sibling(out, ".stage.json")


def fingerprint_of(body: object) -> str:
    """sha256 of a JSON-like object, whatever the order of its keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, body: object) -> None:
    """Write JSON so that a reader finds the old file or the new one, never a part."""
    write_bytes(path, (json.dumps(body, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file or none."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system name this file, if it names none: a failed write does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else it has words of its own, which a name would replace
            error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it is there when the block ends well: flushed to disk, then renamed."""
    neighbour = _sibling(path, f".{os.getpid()}.tmp")
    try:
        with naming(path), neighbour.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    finally:
        neighbour.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that one of our stages wrote.

    Raises:
        IjepaError: the file is not a JSON object.
    """
    try:
        body = parse_json(path.read_bytes())
    except ValueError as error:
        raise IjepaError(
            f"{path} is not JSON ({error}). If a stage made it, remove it and "
            "run that again; else name another file."
        ) from error
    if not isinstance(body, dict):
        raise IjepaError(
            f"{path} holds a {type(body).__name__}, not an object; no stage made it. Name another."
        )
    return body


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401  # whatever it holds
    """Read JSON that may be damaged, or made to do harm.

    Raises:
        ValueError: not JSON, not UTF-8, nested too deeply, or with an integer of thousands of
            digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_foreign(out: Path) -> None:
    is_empty_folder = out.is_dir() and not any(out.iterdir())
    if os.path.lexists(out) and not is_empty_folder and not record_path(out).exists():
        raise IjepaError(
            f"{out} exists and has no record that ijepa made it; "
            f"choose another output, or replace it with --force."
        )


def _refuse_foreign_work(plan: StagePlan, folder: Path) -> None:
    """What has one of our names beside `out`, and is not ours: not even `--force` removes it."""
    out = plan.out
    for path in (folder, _sibling(out, ".outdated")):
        is_ours = path.is_dir() and (not any(path.iterdir()) or any(_notes_in(path)))
        if os.path.lexists(path) and (path.is_symlink() or not is_ours):
            raise _in_the_way(path)
    record = _sibling(out, ".stage.json")
    is_ours = not record.is_symlink() and _is_record(record)
    if os.path.lexists(record) and not plan.is_folder and not is_ours:
        raise _in_the_way(record)


def _in_the_way(path: Path) -> IjepaError:
    return IjepaError(
        f"{path} is in the way: ijepa needs that name and did not make it; move it elsewhere, or "
        f"choose another output."
    )


def _is_record(path: Path) -> bool:
    return path.is_file() and "fingerprint" in read_json(path)


def _notes_in(folder: Path) -> Iterator[Path]:
    """The notes by which a work folder is known as ours; also one that was being written."""
    for pattern in ("work.json", "*stage.json", "work.json.*.tmp"):
        yield from folder.glob(pattern)


def _refuse_place(plan: StagePlan) -> None:
    """Before anything is computed, which could not be published there."""
    out = plan.out
    if not out.name or out.name == "..":
        raise IjepaError(f"{out} is no name for an output; choose another.")
    if not _is_utf8(str(out)):
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


def _refuse_another_stages(plan: StagePlan, folder: Path) -> None:
    """Features under the name of a run are a slip of the pen; `--force` does not help either."""
    for found, record in ((plan.out, read_record(plan.out)), (folder, _note(folder))):
        if record is not None and record.get("stage") != plan.stage:
            raise IjepaError(
                f"{found} was made by `ijepa {record.get('stage')}`; choose another output, or "
                f"remove it yourself."
            )


def _refuse_other(plan: StagePlan, found: Path, record: Mapping[str, Any] | None) -> None:
    if record is None or record.get("fingerprint") == plan.fingerprint:
        return
    raise IjepaError(
        f"{found} was made otherwise: {changes(plan, record)}. "
        "Choose another output, or throw it away with --force."
    )


def _refuse_changed(plan: StagePlan) -> None:
    """A run is not trained again because somebody removed a file of it."""
    record = read_record(plan.out)
    changed = changed_file(plan.out, record) if record else None
    if changed:
        raise IjepaError(
            f"{changed} was changed, damaged or removed after `ijepa {plan.stage}` made it. "
            f"Restore it, choose another output, or rebuild {plan.out} with --force."
        )


def changes(plan: StagePlan, record: Mapping[str, Any]) -> str:
    """In what a plan differs from that of a record, in words; the first three differences."""
    described = plan.described()
    ours, theirs = _flat(described), _flat({name: record.get(name) for name in described})
    names = [name for name in ours | theirs if name not in plan.beside]
    changed = [name for name in names if ours.get(name) != theirs.get(name)]
    known = [name for name in changed if name in ours and name in theirs]
    differences = [f"{name} was {theirs[name]!r:.40}, now {ours[name]!r:.40}" for name in known]
    new = [name for name in ours if name not in theirs]  # the record is of an earlier version
    differences += [f"{name}, a new setting, is {ours[name]!r:.40}" for name in new]
    gone = [name for name in theirs if name not in ours]
    differences += [f"{name} was {theirs[name]!r:.40}, now unset" for name in gone]
    return "; ".join(differences[:3])


def _flat(body: object, name: str = "") -> dict[str, Any]:
    """Leaves of a JSON object by dotted name, without the leading `config.`."""
    if not isinstance(body, Mapping):
        return {name.removeprefix("config."): body}
    parts = [_flat(value, f"{name}.{key}".lstrip(".")) for key, value in body.items()]
    return {name: leaf for part in parts for name, leaf in part.items()}


def partial_work(out: Path) -> dict[str, Any] | None:
    """The plan that the partial work beside `out` was begun by; None without any."""
    return _note(_sibling(out, ".partial"))


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file in a folder, its notes of work and record apart; nothing for a file."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOTES
    }


def _file_facts(path: Path, sha256: str | None = None) -> dict[str, int | str]:
    stat = path.stat()
    return {
        "bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "sha256": sha256 or file_sha256(path),
    }


def _is_as_made(path: Path, facts: Any) -> bool:  # noqa: ANN401  # of JSON
    """A large file that has the size and the time of its making is not read again."""
    if not path.is_file():
        return False
    if isinstance(facts, int):  # the size alone, as earlier versions wrote
        return path.stat().st_size == facts
    stat = path.stat()
    if stat.st_size != facts["bytes"]:
        return False
    is_trusted = stat.st_size > SMALL_BYTES and stat.st_mtime_ns == facts["modified_ns"]
    return is_trusted or bool(file_sha256(path) == facts["sha256"])


def _values(body: Mapping[str, Any], name: str) -> list[Any]:
    found = body.get(name, {})
    return list(found.values()) if isinstance(found, dict) else [found]


def _note(folder: Path) -> dict[str, Any] | None:
    """What `folder` is the partial work of."""
    note = folder / "work.json"
    return read_json(note) if note.exists() else None


def _is_forced(plan: StagePlan, folder: Path) -> bool:
    """Was the partial work begun with --force, and by this plan? Then it goes on without."""
    note = _note(folder)
    return bool(note and note["fingerprint"] == plan.fingerprint and note.get("forced"))


def _open_folder(plan: StagePlan, folder: Path, force: bool) -> None:
    """Keep the partial work of the same plan; throw away that of any other."""
    note = _note(folder)
    if force or note is None or note.get("fingerprint") != plan.fingerprint:
        _remove(folder)
        note = {**plan.described(), "fingerprint": plan.fingerprint, "forced": force}
    folder.mkdir(exist_ok=True)
    for path in folder.rglob("*.tmp"):  # files that a killed process had not finished
        if HALF_WRITTEN.fullmatch(path.name):
            path.unlink()
    write_json(folder / "work.json", note)


def _finish_publishing(plan: StagePlan, folder: Path) -> None:
    """Do what a kill in the middle of publishing left undone."""
    for record in (folder / "stage.json", folder / record_path(plan.out).name):
        if record.exists() and read_json(record).get("fingerprint") == plan.fingerprint:
            move = _move_folder if record.name == "stage.json" else _move_file
            move(folder, plan.out)
    with contextlib.suppress(OSError):  # not there, or not empty
        folder.rmdir()
    outdated = _sibling(plan.out, ".outdated")
    if (outdated / "stage.json").exists() and not plan.out.exists():
        outdated.rename(plan.out)
    else:
        _remove(outdated)


def _move_folder(folder: Path, out: Path) -> None:
    (folder / "work.json").unlink(missing_ok=True)
    outdated = _sibling(out, ".outdated")
    if os.path.lexists(out):
        out.rename(outdated)
        folder.rename(out)
        _remove(outdated)
    else:
        folder.rename(out)


def _move_file(folder: Path, out: Path) -> None:
    made, record = folder / out.name, record_path(out)
    if made.exists():
        record.unlink(missing_ok=True)  # no file ever stands beside another's record
        made.replace(out)
    for path in folder.iterdir():  # before the record goes, which tells a rerun to finish this
        if path.name != record.name:
            _remove(path)
    (folder / record.name).replace(record)
    folder.rmdir()


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _remove(path: Path) -> None:
    """Remove a folder, its note last: a kill leaves nothing that is not known as ours."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for inside in path.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        elif inside.name not in NOTES:
            inside.unlink()
    shutil.rmtree(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
