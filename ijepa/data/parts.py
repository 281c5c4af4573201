"""Parts of a shard set, which the tasks of a job array write and one command puts together."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ijepa.data.plan import PlannedShard
from ijepa.errors import IjepaError
from ijepa.files import sibling
from ijepa.records import read_record, remove_output
from ijepa.stage import StagePlan, changes, is_fresh

NAME = re.compile(r"\.part-(?P<number>\d+)-of-(?P<count>\d+)")  # behind that of the set


def part_plan(whole: StagePlan, part: str) -> StagePlan:
    """The plan of part `3/16` of a set: a folder beside that of the set."""
    number, _, count = part.partition("/")
    out = sibling(whole.out, f".part-{int(number)}-of-{int(count)}")
    return replace(whole, out=out, inputs={**whole.inputs, "part": out.suffix})


def part_of(shards: Sequence[PlannedShard], part: str) -> list[PlannedShard]:
    """The shards of a part: consecutive ones, so that the rows of a table are read once."""
    number, count = map(int, part.split("/"))
    if count > len(shards):
        raise IjepaError(
            f"{count:,} parts, but the set has {len(shards):,} shards; make at most as many parts."
        )
    first, last = ((place * len(shards)) // count for place in (number - 1, number))
    return list(shards[first:last])


def link_parts(whole: StagePlan, folder: Path) -> None:
    """Give the shards of all parts, and the reports on them, a second name in the work folder.

    They are copied where the disk has no hard links.

    Raises:
        IjepaError: a part is missing, damaged, or of another source or other settings.
    """
    plans = _found(whole)
    for number, plan in enumerate(plans, start=1):
        if plan.out.is_dir() and not is_fresh(plan):
            record = read_record(plan.out)
            why = changes(plan, record) if record else "it is not of `ijepa shard --part`"
            raise IjepaError(
                f"{plan.out} is no part of this set: {why or 'a file of it was changed'}. Remove "
                f"it, and run the same command with --part {number}/{len(plans)}."
            )
    missing = [n for n, plan in enumerate(plans, start=1) if not plan.out.is_dir()]
    if missing or not plans:
        which = f"parts {_some(missing)} of {len(plans):,} are" if plans else "every part is"
        example = f"{missing[0]}/{len(plans)}" if plans else "1/16"
        raise IjepaError(
            f"{whole.out} cannot be merged: {which} missing; run the same command with --part "
            f"{example} in place of --merge, and so on."
        )
    for file in (file for plan in plans for file in plan.out.glob("*.tar*")):
        link, half = folder / file.name, sibling(folder / file.name, ".tmp")
        half.unlink(missing_ok=True)
        try:
            os.link(file, half)
        except OSError:
            shutil.copyfile(file, half)
        half.replace(link)


def remove_parts(whole: StagePlan) -> None:
    """Remove the parts of a set that is whole."""
    for plan in _found(whole):
        if is_fresh(plan):
            remove_output(plan.out)


def _found(whole: StagePlan) -> list[StagePlan]:
    """The plans of parts 1, 2, ..., as many as the names of those that are there say."""
    folder, name = whole.out.absolute().parent, whole.out.name
    names = [path.name.removeprefix(name) for path in folder.glob("*.part-*-of-*")]
    counts = {int(match["count"]) for match in map(NAME.fullmatch, names) if match}
    if len(counts) > 1:
        raise IjepaError(
            f"{whole.out} has parts of several divisions, into {_some(sorted(counts))}; remove "
            f"those that you do not want."
        )
    count = max(counts, default=0)
    return [part_plan(whole, f"{number}/{count}") for number in range(1, count + 1)]


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
