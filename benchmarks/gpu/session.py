"""What the parts of a visit share: folders, time, results, and running the product's commands."""

import contextlib
import json
import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ijepa.config import PretrainConfig
from ijepa.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 4.0  # between SIGTERM and SIGKILL: a training saves its state
SHORTEST_SECONDS = 2.0  # less than this is not enough for any command
MINI = (
    "encoder.arch=32x2x2", "predictor.dim=16", "predictor.depth=1", "data.batch_size=16",
    "watch.num_images=32",
)  # fmt: skip
NO_TIME = "no time left"
RATE = re.compile(r"^(\w+): +\d+%.* ([\d.]+)(k?) images/s", re.MULTILINE)  # a progress line


class Command(NamedTuple):
    """One `ijepa` command.

    Attributes:
        what: its name in results and logs, of letters, digits, '.' and '-'.
        words: what stands behind `ijepa`.
        numbers: what to put on record: name -> where it is in its JSON, as `a.b.0.c`.
        spare_seconds: stop it so long before the part should be over.
    """

    what: str
    words: Sequence[str | Path]
    numbers: Mapping[str, str] = {}
    spare_seconds: float = 0.0


class Outcome(NamedTuple):
    """How a command ended.

    Attributes:
        status: `ok`, `failed`, `timeout` if it was stopped, or `skipped`.
        result: its JSON; empty unless it is ok.
        images_per_second: of its last progress line; None if it showed none.
        last: last line of its log.
    """

    status: str
    seconds: float
    result: dict[str, Any]
    images_per_second: float | None
    last: str


@dataclass(frozen=True)
class Session:
    """One part's view of the visit.

    Attributes:
        part: its name.
        data: folder with the tars; None where there is none.
        out: folder of results.jsonl and of what is taken home.
        work: folder for everything else.
        ends: when the part should be over, seconds since the epoch.
        rehearse: everything in miniature.
    """

    part: str
    data: Path | None
    out: Path
    work: Path
    ends: float
    rehearse: bool

    @property
    def left(self) -> float:
        """Seconds until the part should be over."""
        return self.ends - time.time()

    @property
    def shards(self) -> Path:
        """The data of the visit."""
        return self.work / "shards"

    @property
    def runs(self) -> Path:
        """Folder of all runs."""
        return self.work / "runs"

    @property
    def small_shards(self) -> Path:
        """Few images, for runs of a few steps."""
        return self.shards if self.rehearse else self.work / "small-shards"

    @property
    def recipe(self) -> str:
        """What is trained."""
        return "scenes-mini" if self.rehearse else "imagenette-vits16"

    def settings(self, more: Iterable[str] = ()) -> list[str]:
        """Settings beside the recipe's."""
        return [*(MINI if self.rehearse else ()), *more]

    def config(self, more: Iterable[str] = ()) -> PretrainConfig:
        """The recipe with these settings, contexts cut over the whole batch."""
        config = load_recipe(self.recipe, self.settings(more))
        one_group = config.masks.model_copy(update={"group_size": config.data.batch_size})
        return config.model_copy(update={"masks": one_group})

    def record(self, what: str, status: str = "ok", **numbers: object) -> None:
        """Append one line to results.jsonl."""
        append_result(self.out, self.part, what, status, **numbers)

    def find(self, part: str, what: str, name: str, default: Any) -> Any:  # noqa: ANN401  # as stored
        """The newest number of that name, or the default."""
        for line in reversed(read_results(self.out)):
            if (line["part"], line["what"]) == (part, what) and line.get(name) is not None:
                return line[name]
        return default

    def ijepa(self, command: Command) -> Outcome:
        """Run one command, within the part's time, and put on record how it went."""
        if self.left < SHORTEST_SECONDS:
            self.record(command.what, "skipped", last=NO_TIME)
            return Outcome("skipped", 0.0, {}, None, NO_TIME)
        outcome = self._run(command, max(self.left - command.spare_seconds, SHORTEST_SECONDS))
        found = {name: _dig(outcome.result, place) for name, place in command.numbers.items()}
        numbers = {name: value for name, value in found.items() if value is not None}
        if outcome.images_per_second is not None:
            numbers["images_per_second"] = outcome.images_per_second
        if outcome.status != "ok":
            numbers["last"] = outcome.last
        self.record(command.what, outcome.status, seconds=outcome.seconds, **numbers)
        return outcome

    def side_by_side(self, commands: Iterable[Command]) -> list[Outcome]:
        """Run commands at the same time (two at a time in a rehearsal)."""
        waiting = list(commands)
        with ThreadPoolExecutor(2 if self.rehearse else max(len(waiting), 1)) as pool:
            return list(pool.map(self.ijepa, waiting))

    def attempt(self, what: str, work: Callable[[], object]) -> None:
        """Do something; whatever goes wrong in it is a line, and does not cost the rest."""
        try:
            work()
        except Exception as error:
            logging.exception("%s", what)
            message = " ".join(f"{type(error).__name__}: {error}".split())
            self.record(what, "failed", last=message[:300])

    def log(self, what: str) -> Path:
        """Where a command's output goes."""
        return self.work / "logs" / f"{self.part}.{what}.log"

    def start(self, command: Command) -> "subprocess.Popen[bytes]":
        """Start a command; its log takes stderr, a .json beside it stdout."""
        words = [
            sys.executable,
            "-m",
            "ijepa_cli",
            *(str(word) for word in command.words),
            "--json",
        ]
        path = self.log(command.what)
        with path.open("ab") as log, path.with_suffix(".json").open("wb") as answer:
            return subprocess.Popen(words, stdout=answer, stderr=log)

    def _run(self, command: Command, seconds: float) -> Outcome:
        began, status = time.monotonic(), "ok"
        process = self.start(command)
        try:
            status = "failed" if process.wait(seconds) else "ok"
        except subprocess.TimeoutExpired:
            status = "timeout"
            stop(process)
        taken = time.monotonic() - began
        answer = self.log(command.what).with_suffix(".json")
        result = _json(answer.read_text(errors="replace")) if status == "ok" else {}
        text = self.log(command.what).read_text(errors="replace")
        found = [one for one in RATE.findall(text) if one[0] == command.words[0]]
        rate = float(found[-1][1]) * (1000 if found[-1][2] else 1) if found else None
        return Outcome(status, taken, result, rate, last_line(text))


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and SIGKILL for what does not heed it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def append_result(out: Path, part: str, what: str, status: str, **numbers: object) -> None:
    """Append one line to `out`/results.jsonl; floats with five digits."""
    rounded = {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in numbers.items()
    }
    line = {"part": part, "what": what, "status": status, "at": int(time.time()), **rounded}
    with (out / "results.jsonl").open("a") as file:  # one write: several processes append
        file.write(json.dumps(line) + "\n")


def read_results(out: Path) -> list[dict[str, Any]]:
    """All whole lines of `out`/results.jsonl; one that was cut off is left out."""
    path, found = out / "results.jsonl", []
    for line in path.read_text().split("\n")[:-1] if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def last_line(text: str) -> str:
    """The last line with a letter or a digit, at most 300 characters."""
    lines = [line.strip(" │|") for line in text.splitlines() if re.search(r"\w", line)]
    return lines[-1][-300:] if lines else ""


def _json(text: str) -> dict[str, Any]:
    """The JSON object at the end of a command's output; libraries may print lines before it."""
    start = 0 if text.startswith("{") else text.find("\n{")
    try:
        found: dict[str, Any] = json.loads(text[start:])
    except ValueError:
        logging.warning("no JSON in %r", text[:300])
        return {}
    return found


def _dig(body: Any, path: str) -> Any:  # noqa: ANN401  # JSON
    """The value at `a.b.0.c`; None if there is no such place."""
    for name in path.split("."):
        if isinstance(body, list):
            body = body[int(name)] if int(name) < len(body) else None
        else:
            body = body.get(name) if isinstance(body, dict) else None
    return body
