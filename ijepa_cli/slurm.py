"""Handing a command to a cluster: submitit submits it, and its tasks run it together."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from ijepa.errors import IjepaError
from ijepa_cli.main import main
from ijepa_cli.show import without_options

FLAGS = ("--launcher", "--nodes", "--gpus-per-node", "--minutes", "--slurm")
CPUS_PER_TASK = 8  # for a process and its workers; SLURM gives one unless it is asked for more


@dataclass(frozen=True)
class Command:
    """An `ijepa` command that every task of a job runs as one of its processes."""

    words: tuple[str, ...]  # what stands behind `ijepa`

    def __call__(self) -> None:
        """Run it; the job fails if the command does."""
        environment = TorchDistributedEnvironment()
        if environment.world_size > 1:
            environment.export(set_cuda_visible_devices=False, overwrite=True)
        sys.argv = ["ijepa", *self.words]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"ijepa ended with exit code {ended.code}.") from None

    def checkpoint(self) -> DelayedSubmission:
        """For submitit, before a time-out or pre-emption: the command resumes without --force."""
        return DelayedSubmission(Command(tuple(without_options(self.words, (), ("--force",)))))


def submit(
    out: Path, launcher: str, nodes: int, processes: int, minutes: int, slurm: Sequence[str]
) -> str:
    """Submit the command that is running, to be run there, and say what to tell the user.

    A local job has ended by then; an `IjepaError` says that it failed, or why none was submitted.
    """
    if bare := [setting for setting in slurm if "=" not in setting]:
        raise IjepaError(f"--slurm {bare[0]!r} has no '='; write it as partition=gpu.")
    pairs = (setting.split("=", 1) for setting in slurm)
    given = {name.replace("-", "_"): value for name, value in pairs}
    logs = out.with_name(out.name + ".submitit")
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=launcher)
        executor.update_parameters(
            name=f"ijepa {out.name}",
            nodes=nodes,
            tasks_per_node=processes,
            timeout_min=minutes,
            slurm_gpus_per_node=processes,
            slurm_cpus_per_task=CPUS_PER_TASK,
            # One process that fails must end the job: the others wait for it in a collective.
            slurm_srun_args=["--kill-on-bad-exit=1"],
            slurm_additional_parameters=given,  # in place of those above
        )
        job = executor.submit(Command(tuple(without_options(sys.argv[1:], FLAGS))))
    except RuntimeError as error:  # there is no SLURM here, or it refuses an option
        raise IjepaError(f"--launcher {launcher}: {error}") from error
    if launcher == "slurm":
        return f"job {job.job_id} submitted; logs in {logs}"
    failures = [job.task(n).exception() for n in range(job.num_tasks)]  # waits for all of them
    if any(failures):
        tail = (job.stderr() or "").strip().splitlines()[-1:]
        raise IjepaError(f"The local job failed: {' '.join(tail)} Its logs are in {logs}.")
    return f"local job done; logs in {logs}"
