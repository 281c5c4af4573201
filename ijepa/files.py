"""Files that are whole or absent, JSON that may be damaged, and outputs that one process writes."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent
from ijepa.text import did_you_mean

LARGE_BYTES, PART_BYTES = 2**28, 2**24  # from when on reading a file shows a bar, and its steps
ORPHANS_SECONDS = 20  # torch's workers check every 5 whether the process that began them is alive
HOLDER = r"process (\d+) on (.+)"  # what a lock file contains
LONGEST = 400  # characters of it
# In the folder of a run: its newest state, and that of the best health check, if there are labels.
CHECKPOINTS = Path("checkpoints")
LAST, BEST = CHECKPOINTS / "last.pt", CHECKPOINTS / "best.pt"
BESIDE = (".stage.json", ".partial", ".lock", ".outdated")  # what stages keep beside an output


def is_remote(data: str | os.PathLike[str]) -> bool:
    """Is this an address (`s3://`, `https://`, `pipe:`), not a folder of this machine?"""
    return isinstance(data, str) and ("://" in data or data.startswith("pipe:"))


def names_in(folder: Path) -> list[str]:
    """Names in a folder, without those of locks, records and unfinished work; none if missing."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if not name.endswith(BESIDE)]


def no_file(path: Path, what: str) -> str:
    """Why there is no file of this name, such as a `feature file`; with the nearest name."""
    if path.is_dir():
        return f"{path} is a folder, not a {what}"
    return f"There is no {what} {path}{did_you_mean(path.name, names_in(path.parent))}"


def sibling(path: Path, suffix: str) -> Path:
    """The path with a suffix behind its whole name: `F.h5` and `.lock` give `F.h5.lock`."""
    return Path(f"{path}{suffix}")  # also of `.` and `/`, which have no name


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears when the block ends well: flushed, then renamed."""
    neighbour = sibling(path, f".{os.getpid()}.tmp")
    try:
        with naming(path), neighbour.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    finally:
        neighbour.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the system this file's name if it has none: a failed write has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else it has words of its own, which a name would replace
            error.filename = error.filename or str(path)
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file or none."""
    with whole_file(path) as file:
        file.write(content)


def link_or_copy(source: Path, path: Path) -> None:
    """Give a file, which is never changed but only replaced, another name; atomic."""
    neighbour = sibling(path, f".{os.getpid()}.tmp")
    neighbour.unlink(missing_ok=True)
    try:
        os.link(source, neighbour)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, neighbour)
    neighbour.replace(path)


def write_json(path: Path, body: object) -> None:
    """Write JSON so that a reader finds the old file or the new one, never a part."""
    write_bytes(path, (json.dumps(body, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a stage wrote."""
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
    """Read JSON that may be damaged, or made to do harm; a ValueError says what is wrong."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            raise
        raise ValueError("an integer of thousands of digits") from error


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """All records of a `metrics.jsonl`, in order; a last line still being written is left out."""
    path = Path(path)
    if not path.is_file():
        raise IjepaError(f"There is no {path}; give a run folder of `ijepa pretrain`.")
    try:
        records = [parse_json(line) for line in path.read_text().split("\n")[:-1]]
    except ValueError as error:
        raise IjepaError(f"{path} is damaged: {error}.") from error
    for number, record in enumerate(records, 1):
        known = record.values() if isinstance(record, dict) and "step" in record else [None]
        if not all(isinstance(value, int | float) for value in known):
            raise IjepaError(f"{path} is damaged: line {number} is not a step and its numbers.")
    if not records:
        raise IjepaError(f"{path} has no record yet; wait until the run has taken some steps.")
    return records


def fingerprint_of(body: object) -> str:
    """sha256 of a JSON-like object, whatever the order of its keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path, progress: Progress = silent) -> str:
    """sha256 of a file's bytes, in hexadecimal digits; `progress` hears of a large file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < LARGE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while part := file.read(PART_BYTES):
            digest.update(part)
            progress(f"check {path.name} MB", file.tell() // 10**6, size // 10**6)
        return digest.hexdigest()


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold `<out>.lock` by an flock, which the kernel frees even after kill -9.

    Workers that a killed process forked hold it for seconds more, until they notice; these are
    waited for. An `IjepaError` if another process holds it, or the file of that name is no lock.
    """
    path = sibling(out, ".lock")
    file = _locked(path, out)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _locked(path: Path, out: Path) -> TextIO:
    """The lock file, held by this process alone and still under its name."""
    until = time.monotonic() + ORPHANS_SECONDS
    while True:
        is_ours = not path.is_symlink() and (path.is_file() or not path.exists())
        if is_ours:
            file = path.open("a+", errors="replace")
            file.seek(0)
            holder = file.read(LONGEST).strip()
        if not is_ours or (holder and not re.fullmatch(HOLDER, holder)):
            raise IjepaError(
                f"{path} was not made by ijepa, but ijepa needs that name; move it elsewhere, or "
                f"choose another output."
            )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            ended = _has_ended(holder)
            if ended and time.monotonic() < until:
                time.sleep(0.1)
                continue
            who = f"workers of {holder}, which has ended" if ended else holder or "another process"
            raise IjepaError(
                f"{out} is being written by {who}; wait for it, or choose another output."
            ) from error
        # The holder before us may have removed the file between our open and our flock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _has_ended(holder: str) -> bool:
    """Was the holder a process of this machine that no longer runs?"""
    known = re.fullmatch(HOLDER, holder)
    if known is None or known[2] != socket.gethostname():
        return False
    try:
        os.kill(int(known[1]), 0)  # signal 0 asks, and does not kill
    except OSError as error:  # another user's process may not be asked, but is there
        return isinstance(error, ProcessLookupError)
    return False
