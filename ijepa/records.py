"""The record of a finished output: what made it, and whether its files are unchanged."""

import contextlib
import functools
import platform
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ijepa.errors import IjepaError
from ijepa.files import file_sha256, lock, read_json, sibling
from ijepa.version import VERSION

NOTES = ("work.json", "stage.json")  # of a work folder: what it is for, and that it is finished
SMALL_BYTES = 2**20  # files up to this size are read again to see that they did not change
LIBRARIES = ("torch", "timm", "numpy", "scikit-learn", "h5py", "faiss-cpu", "pillow")
FACTS = {"bytes", "modified_ns", "sha256"}  # of a file


def read_record(out: Path) -> dict[str, Any] | None:
    """The `stage.json` of a finished output; None if there is no finished output at `out`."""
    path = record_path(out)
    if not (out.exists() and path.exists()):
        return None
    record = read_json(path)
    files = record.get("files", {})
    known = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(facts, dict) and facts.keys() >= FACTS for facts in known):
        raise IjepaError(
            f"{path} was changed or damaged after it was written. Restore it, or remove it and "
            f"rebuild {out} with --force."
        )
    return record


def record_path(out: Path) -> Path:
    """Where the record of `out` is: inside a folder, beside a file."""
    return out / "stage.json" if out.is_dir() else sibling(out, ".stage.json")


def changed_file(out: Path, record: Mapping[str, Any], names: Collection[str] = ()) -> Path | None:
    """The first file of a finished output that its record does not describe; None if all agree.

    `names` are of a folder's files, to look at these alone. A large file of the recorded size and
    time is not read.
    """
    files = record.get("files", {})
    for name, facts in ((name, files[name]) for name in files if not names or name in names):
        path = out / name if out.is_dir() else out
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return path
        now = path.stat()
        is_trusted = now.st_size > SMALL_BYTES and now.st_mtime_ns == facts["modified_ns"]
        if not is_trusted and file_sha256(path) != facts["sha256"]:
            return path
    return None


def refuse_changed(out: Path, *names: str) -> None:
    """Refuse a finished output if one of these files is not as its record says, if it has one."""
    if changed := changed_file(out, read_record(out) or {}, names):
        raise IjepaError(
            f"{changed} was changed or damaged after it was made. Restore it, or rebuild {out}."
        )


def file_facts(path: Path, sha256: str | None = None) -> dict[str, int | str]:
    """Size, time and digest of a file, for the record of its output."""
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    return {"bytes": size, "modified_ns": time, "sha256": sha256 or file_sha256(path)}


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a result."""
    versions = {"python": platform.python_version(), "ijepa": VERSION}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@functools.cache
def checkout_commit() -> str:
    """The commit of the checkout that runs, with `-dirty` if files differ; empty if installed."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # there is no git
        return ""


def remove_output(out: Path) -> bool:
    """Remove what a stage made at `out`, its record and unfinished work; whether there was any."""
    beside = sibling(out, ".stage.json")
    work = (sibling(out, ".partial"), sibling(out, ".outdated"))
    outputs = [path for path in work if not path.is_symlink() and any(notes_in(path))]
    if is_record(out / "stage.json"):
        outputs.append(out)
    elif not out.is_dir() and is_record(beside):
        outputs += [out, beside]
    if outputs or sibling(out, ".lock").is_file():
        with lock(out):  # refuses while a stage is making it
            for path in outputs:
                remove(path)
    return bool(outputs)


def is_record(path: Path) -> bool:
    """Is it the record of a stage?"""
    return path.is_file() and "fingerprint" in read_json(path)


def notes_in(folder: Path) -> Iterator[Path]:
    """The notes by which a work folder is known as ours; also one that was being written."""
    for pattern in ("work.json", "*stage.json", "work.json.*.tmp"):
        yield from folder.glob(pattern)


def remove(path: Path) -> None:
    """Remove a folder, its notes last: after a kill, what is left is still known as ours."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for inside in path.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        elif inside.name not in NOTES:
            inside.unlink()
    shutil.rmtree(path)
