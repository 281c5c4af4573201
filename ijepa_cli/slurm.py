"""Handing a command to a cluster: submitit submits it, and its tasks run it together."""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ijepa.errors import IjepaError

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

PANEL = "Cluster"
Launcher = Annotated[
    Literal["here", "slurm", "local"],
    typer.Option(
        help="slurm: submit a job; local: the same on this machine, to try it.",
        rich_help_panel=PANEL,
    ),
]
Nodes = Annotated[int, typer.Option(help="Machines of the job.", min=1, rich_help_panel=PANEL)]
GpusPerNode = Annotated[
    int,
    typer.Option(help="GPUs, and so processes, of each machine.", min=1, rich_help_panel=PANEL),
]
Minutes = Annotated[
    int, typer.Option(help="The job's time limit; it is requeued.", min=1, rich_help_panel=PANEL)
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(help="More for sbatch, as partition=gpu; repeatable.", rich_help_panel=PANEL),
]
CPUS_PER_TASK = 8  # for a process and its workers; SLURM gives one unless it is asked for more
OPTIONS = ("--launcher", "--nodes", "--gpus-per-node", "--minutes", "--slurm")


@dataclass(frozen=True)
class Command:
    """An `ijepa` command that every task of a job runs as one of its processes."""

    words: tuple[str, ...]  # what stands behind `ijepa`

    def __call__(self) -> None:
        """Run it; the job fails if the command does."""
        from submitit.helpers import TorchDistributedEnvironment

        from ijepa_cli.main import main

        environment = TorchDistributedEnvironment()
        if environment.world_size > 1:
            environment.export(set_cuda_visible_devices=False, overwrite=True)
        sys.argv = ["ijepa", *self.words]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"ijepa ended with exit code {ended.code}.") from None

    def checkpoint(self) -> "DelayedSubmission":
        """Asked for by submitit before a time-out or pre-emption: the command resumes by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    out: Path, launcher: str, nodes: int, processes: int, minutes: int, slurm: Sequence[str]
) -> str:
    """Submit the command that is running, without the options that say where.

    Returns:
        What to tell the user. A local job has ended by then.

    Raises:
        IjepaError: submitit is not installed, there is no SLURM here, or a local job failed.
    """
    if importlib.util.find_spec("submitit") is None:
        raise IjepaError("--launcher needs submitit; install it with pip install submitit.")
    import submitit

    settings: dict[str, int | str] = {"gpus_per_node": processes, "cpus_per_task": CPUS_PER_TASK}
    for setting in slurm:
        name, equals, settings[name] = setting.partition("=")
        if not equals:
            raise IjepaError(f"--slurm {name!r} has no '='; write it as partition=gpu.")
    logs = out.with_name(out.name + ".submitit")
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=launcher)
    except RuntimeError as error:
        raise IjepaError(f"--launcher {launcher}: {error}.") from error
    executor.update_parameters(
        name=f"ijepa {out.name}",
        nodes=nodes,
        tasks_per_node=processes,
        timeout_min=minutes,
        # One process that fails must end the job: the others wait for it in a collective operation.
        slurm_srun_args=["--kill-on-bad-exit=1"],
        **{f"slurm_{name}": value for name, value in settings.items()},
    )
    job = executor.submit(Command(_without(sys.argv[1:], OPTIONS)))
    if launcher == "slurm":
        return f"job {job.job_id} submitted; logs in {logs}"
    failures = [job.task(n).exception() for n in range(job.num_tasks)]  # waits for all of them
    if any(failures):
        tail = (job.stderr() or "").strip().splitlines()[-1:]
        raise IjepaError(f"The local job failed: {' '.join(tail)} Its logs are in {logs}.")
    return f"local job done; logs in {logs}"


def _without(words: Sequence[str], options: Sequence[str]) -> tuple[str, ...]:
    """Words of a command line less some options and their values."""
    kept: list[str] = []
    values = iter(words)
    for word in values:
        if word in options:
            next(values, None)
        elif word.partition("=")[0] not in options:
            kept.append(word)
    return tuple(kept)
