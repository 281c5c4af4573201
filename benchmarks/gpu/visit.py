"""Everything that a visit of 15 minutes to a machine with one GPU is for, unattended.

    python3 benchmarks/gpu/visit.py --data .gpu/data --out OUT [--parts smoke,bench] [--seconds 570]
    python3 benchmarks/gpu/visit.py --rehearse --out OUT

Each part is a process of its own with a share of the time, so that none can sink another. Every
number is a line of OUT/results.jsonl as soon as it exists; the table of all is printed after each
part. What is taken home is in OUT: at most 8 files of at most 16 MiB. A second visit on the same
machine, with --work as before, goes on with what the first one left. --rehearse runs every part in
miniature on a CPU.
"""

import argparse
import gzip
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from session import ROOT, Session, append_result, last_line, read_results

SECONDS = {  # weights of the parts, in their order; what ends early leaves its rest to others
    "setup": 50, "smoke": 45, "shapes": 20, "bench": 95, "sweep": 120, "full": 160, "score": 70,
}  # fmt: skip
REHEARSAL = {
    "setup": 30, "smoke": 90, "shapes": 15, "bench": 20, "sweep": 30, "full": 30, "score": 45,
}  # fmt: skip
VISIT_SECONDS = 570.0
REHEARSAL_SECONDS = 420.0  # it takes 170 seconds of CPU, about 100 s on two idle cores
PACK_SECONDS = 10.0
KILL_SECONDS = 5.0  # from a part's own end of time to its end by force, and from SIGTERM to SIGKILL
LARGEST_BYTES = 16 * 2**20
CARRIED = ("train.h5", "val.h5", "trace.json.gz", "report.html")  # from the work folder, if there
SAID = ("part", "what", "status", "at", "last")  # by columns of their own, or not shown

Start = Callable[[str, float], Sequence[str]]  # part, when it should be over -> its command line


def share(part: str, left: float, behind: Mapping[str, float]) -> float:
    """Seconds for a part: of what is left, in proportion to the weights of it and those behind it.

    Args:
        part: one of `behind`.
        left: seconds, without those that packing needs.
        behind: weight of this part and of all that follow.
    """
    return max(left, 0.0) * behind[part] / sum(behind.values())


def run_parts(
    weights: Mapping[str, float], start: Start, out: Path, work: Path, ends: float
) -> None:
    """Run each part for its share of the time until `ends`, whatever becomes of the others."""
    names = list(weights)
    for place, part in enumerate(names):
        behind = {name: weights[name] for name in names[place:]}
        seconds = share(part, ends - time.time(), behind)
        run_part(part, start(part, time.time() + seconds), out, work, seconds)
        print(table(read_results(out)), flush=True)
        shutil.copy(out / "results.jsonl", work / "results.jsonl")


def run_part(part: str, words: Sequence[str], out: Path, work: Path, seconds: float) -> None:
    """Run one part, end it by force when its time is over, and put on record how it ended."""
    log = work / "logs" / f"{part}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, process_group=0)
        try:
            status = "failed" if process.wait(seconds + KILL_SECONDS) else "ok"
        except subprocess.TimeoutExpired:
            status = "timeout"
        finally:
            _end_group(process)
    taken = time.monotonic() - began
    last = {} if status == "ok" else {"last": last_line(log.read_text(errors="replace"))}
    append_result(out, part, "part", status, seconds=taken, allotted=seconds, **last)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a part and all that it started: SIGTERM, time to save, SIGKILL."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + KILL_SECONDS
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nobody is left
        pass
    process.wait()


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """A line a result: part, what, how it ended, its numbers; the reason where it failed."""
    rows = [("part", "what", "status", "numbers")]
    for line in results:
        numbers = [f"{name} {_short(value)}" for name, value in line.items() if name not in SAID]
        reason = f"  [{line['last'][:120]}]" if line.get("last") else ""
        rows.append((line["part"], line["what"], line["status"], "  ".join(numbers) + reason))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows
    )


def _short(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def pack(out: Path, work: Path) -> None:
    """Gather in `out` what is taken home, none of it larger than what may travel."""
    logs = sorted((work / "logs").glob("*"))
    _archive(out / "logs.tgz", {path.name: path for path in logs})
    found = [*work.glob("runs/**/metrics.jsonl"), *work.glob("runs/**/config.yaml")]
    _archive(out / "metrics.tgz", {str(path.relative_to(work)): path for path in sorted(found)})
    for name in CARRIED:
        if (work / name).exists():
            shutil.copy(work / name, out / name)
    (out / "table.txt").write_text(table(read_results(out)) + "\n")
    for path in out.iterdir():
        if path.stat().st_size > LARGEST_BYTES:
            append_result(out, "pack", path.name, "failed", bytes=path.stat().st_size)
            path.unlink()
    files = sorted(path.name for path in out.iterdir())
    append_result(out, "pack", "part", "ok", files=len(files), names=" ".join(files))
    (out / "table.txt").write_text(table(read_results(out)) + "\n")


def _archive(path: Path, files: Mapping[str, Path]) -> None:
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, source in files.items():
            archive.add(source, arcname=name, recursive=False)


def environment() -> dict[str, str]:
    """What every part is started with; the product and the benchmarks are found in the checkout."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "OMP_NUM_THREADS": str(max(min(8, (os.cpu_count() or 1) // 2), 1)),
    }


def drive(chosen: argparse.Namespace) -> None:
    """Run the parts that were asked for, then pack, however the parts ended."""
    began, out, work = time.time(), chosen.out, chosen.work
    for folder in (out, work / "logs", work / "runs"):
        folder.mkdir(parents=True, exist_ok=True)
    if not (out / "results.jsonl").exists() and (work / "results.jsonl").exists():
        shutil.copy(work / "results.jsonl", out / "results.jsonl")
    os.environ.update(environment())
    own = [sys.executable, str(Path(__file__).resolve()), "--out", str(out), "--work", str(work)]
    own += ["--data", str(chosen.data)] if chosen.data else []
    own += ["--rehearse"] if chosen.rehearse else []
    known = REHEARSAL if chosen.rehearse else SECONDS
    weights = {part: known[part] for part in known if part in chosen.parts}
    signal.signal(signal.SIGTERM, _leave)
    try:
        run_parts(
            weights,
            lambda part, ends: [*own, "--part", part, "--ends", str(ends)],
            out,
            work,
            began + chosen.seconds - PACK_SECONDS,
        )
    finally:
        pack(out, work)
        print(table(read_results(out)), flush=True)


def _leave(*_: object) -> NoReturn:
    """Answer SIGTERM as an exception, so that the running part is ended and results are packed."""
    sys.exit(143)


def main() -> None:
    """Read the command line; run one part for the driver, or the visit."""
    parser = argparse.ArgumentParser(description="A visit to a machine with one GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder to take home")
    parser.add_argument("--data", type=Path, help="folder with imagenette128.tar")
    parser.add_argument("--work", type=Path, help="folder for the rest (OUT.work)")
    parser.add_argument("--parts", default=",".join(SECONDS), help=",".join(SECONDS))
    parser.add_argument("--seconds", type=float, help="of the whole visit")
    parser.add_argument("--rehearse", action="store_true", help="in miniature, on a CPU")
    parser.add_argument("--part", choices=SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--ends", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.out = chosen.out.resolve()
    chosen.work = (chosen.work or chosen.out.with_name(chosen.out.name + ".work")).resolve()
    chosen.parts = chosen.parts.split(",")
    if unknown := set(chosen.parts) - {*SECONDS, "pack"}:  # which is always done
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(SECONDS)}")
    if not (chosen.data or chosen.rehearse):
        parser.error("--data is needed: the folder with imagenette128.tar")
    chosen.seconds = chosen.seconds or (REHEARSAL_SECONDS if chosen.rehearse else VISIT_SECONDS)
    if chosen.part:
        from parts import PARTS

        PARTS[chosen.part](
            Session(chosen.part, chosen.data, chosen.out, chosen.work, chosen.ends, chosen.rehearse)
        )
    else:
        drive(chosen)


if __name__ == "__main__":
    main()
