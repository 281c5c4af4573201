"""Processes that write whole shards; which of them writes what leaves the bytes as they are.

They are started as `python -m`, not by multiprocessing: so a script that calls `shard` needs no
`if __name__ == "__main__"`, nothing of the caller is forked, and they end with their standard
input, that is with the caller, even after kill -9.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ijepa.data.task import ShardReport, ShardTask, write_shard
from ijepa.errors import IjepaError

Message = dict[str, Any]  # one of `done`: images, `report`, `error`, `failure`: facts of an OSError


def write_shards(
    tasks: list[ShardTask], workers: int, count: Callable[[int], None], lock: int
) -> Generator[ShardReport]:
    """Write shards, each by one process.

    Args:
        tasks: what to write.
        workers: processes.
        count: hears now and then how many images more are done.
        lock: descriptor of the output's lock, which every process holds until it ends.

    Raises:
        IjepaError: a process was killed.
        OSError: a file could not be read or written.
    """
    if workers < 2 or len(tasks) < 2:
        for task in tasks:
            yield write_shard(task, count)
        return
    unfinished = len(tasks)
    with _crew(deque(tasks), min(workers, len(tasks)), lock) as messages:
        while unfinished:
            message = messages.get()
            if "done" in message:
                count(message["done"])
            elif "report" in message:
                unfinished -= 1
                yield ShardReport.model_validate(message["report"])
            else:
                raise _raised(message)


@contextlib.contextmanager
def _crew(left: deque[ShardTask], size: int, lock: int) -> Iterator[queue.SimpleQueue[Message]]:
    """Processes at work on the tasks that are left; killed when the block ends, however it does."""
    messages = queue.SimpleQueue[Message]()
    processes = [_start(lock) for _ in range(size)]
    drivers = [threading.Thread(target=_drive, args=(one, left, messages)) for one in processes]
    try:
        for driver in drivers:
            driver.start()
        yield messages
    finally:
        left.clear()
        for process in processes:
            process.kill()
        for driver in drivers:
            driver.join()


def serve() -> None:
    """A process of the crew: write the tasks on standard input, tell on standard output."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not answer
    tasks = queue.SimpleQueue[str]()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()

    def tell(message: Message) -> None:
        answers.write(json.dumps(message) + "\n")

    while True:
        task = ShardTask.model_validate(json.loads(tasks.get()))
        try:
            report = write_shard(task, lambda images: tell({"done": images}))
        except IjepaError as error:
            tell({"error": str(error)})
        except OSError as error:
            tell({"failure": [error.errno, error.strerror, error.filename]})
        else:
            tell({"report": report.model_dump()})


def _start(lock: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        pass_fds=(lock,),  # nobody begins while one that was held back may still write
        start_new_session=True,  # Ctrl-C is for the caller, who then ends them
    )


def _drive(
    process: subprocess.Popen[str], left: deque[ShardTask], messages: queue.SimpleQueue[Message]
) -> None:
    """In a thread of the caller: give one process task after task, pass on what it tells."""
    try:
        with process, contextlib.suppress(IndexError):  # another process took the last task
            while True:
                _ask(process, left.popleft(), messages)
    except BrokenPipeError:
        messages.put({"killed": True})
    except Exception as error:  # noqa: BLE001  # raised by the caller, who else waits for ever
        messages.put({"mistake": error})


def _ask(
    process: subprocess.Popen[str], task: ShardTask, messages: queue.SimpleQueue[Message]
) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    # Not `model_dump_json`, which takes no path that is not UTF-8.
    process.stdin.write(json.dumps(task.model_dump(mode="json")) + "\n")
    process.stdin.flush()
    message: Message = {}
    while "report" not in message:
        line = process.stdout.readline()
        if not line:
            raise BrokenPipeError
        message = json.loads(line)
        messages.put(message)


def _listen(tasks: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        tasks.put(line)
    os._exit(0)  # the caller has no more tasks, or is gone


def _raised(message: Message) -> Exception:
    if "error" in message:
        return IjepaError(message["error"])
    if "mistake" in message:
        mistake: Exception = message["mistake"]
        return mistake
    if "failure" in message:
        return OSError(*message["failure"])
    return IjepaError(
        "A process that wrote shards was killed, most likely for want of memory; the same command "
        "goes on from here, and with --workers 1 needs the least."
    )


if __name__ == "__main__":
    serve()
