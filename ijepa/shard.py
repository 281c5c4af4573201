"""Data set to shard set: every image checked, its bytes untouched, any sample at hand by number."""

import contextlib
import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ijepa.config import CPU_WORKERS, RUNTIME, Config, Runtime, ShardConfig, StrPath, validated
from ijepa.data.crew import write_shards
from ijepa.data.plan import NewImage, ShardPlan, write_plan
from ijepa.data.shards import (
    BAD,
    INDEX,
    ROW,
    SCHEMA,
    SetIndex,
    SplitIndex,
    open_shards,
    rows_path,
)
from ijepa.data.shuffle import shuffled
from ijepa.data.sources.items import DEFAULT_SPLIT, UNKNOWN, Contents, Item, Label, Labels
from ijepa.data.sources.kinds import Source, open_source
from ijepa.data.subset import Subset
from ijepa.data.task import SIDECARS, BadImage, ShardReport, ShardTask, finished
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent
from ijepa.stage import (
    StagePlan,
    Work,
    exclusive_work,
    file_sha256,
    fingerprint_of,
    read_json,
    write_bytes,
    write_json,
)

VERSION = 2
SOURCE = "source"  # in the work folder: what must be unpacked, rendered or encoded first
SHOWN_BAD = 5  # in an error
REPORT_IMAGES = 10_000

log = logging.getLogger(__name__)

SHARD = ShardConfig()
MOST_REASONS = 20  # told one by one; the rest together
UNDECODED = "images that do not decode, see bad.jsonl"


class ClassSummary(Config):
    """The classes of one label.

    Attributes:
        classes: how many.
        first: name of class 0.
        last: name of the last class.
        splits: the splits whose images have this label.
    """

    classes: int
    first: str
    last: str
    splits: tuple[str, ...]


class ShardResult(Config):
    """A finished shard set, and what was understood of its source.

    Attributes:
        splits: samples by split.
        labels: classes by label.
        bad: images left out because they do not decode; `bad.jsonl` lists them.
        left_out: numbers of files and images of the source that did not come along, by reason.
        changes: numbers of images that were changed, or of which a part is lost, by reason.
        fingerprint: of the contents.
    """

    out: Path
    cached: bool
    splits: dict[str, int]
    labels: dict[str, ClassSummary]
    shards: int
    bytes: int
    bad: int
    left_out: dict[str, int]
    changes: dict[str, int]
    fingerprint: str


def shard(
    source: StrPath,
    out: StrPath,
    config: ShardConfig = SHARD,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
    *,
    subset: StrPath | None = None,
) -> ShardResult:
    """Write the images of `source` as a shard set; goes on after a kill where it was.

    Args:
        source: a path, or `kind:path`; see `ijepa.data.sources.kinds`.
        out: the folder to make.
        config: what to write; its `subset` is filled in from `subset`.
        runtime: `workers` processes write, `force` makes it again.
        progress: hears of the images that are done.
        subset: a file that lists keys, paths or file names to keep, one a line.

    Raises:
        IjepaError: nothing to read, too many images that do not decode, or `out` is not free.
    """
    out = Path(out)
    source = os.fspath(source)
    subset = Path(subset) if subset is not None else None
    if subset is not None:
        config = config.model_copy(update={"subset": _sha256(subset)})
    config = config.model_copy(update={"splits": tuple(sorted(set(config.splits)))})
    opened = open_source(source, folders_are_classes=config.folders_are_classes)
    job = _Job(source, opened, config, runtime, progress, subset)
    _keep_source(job.opened.where, out)
    plan = StagePlan("shard", VERSION, config, {"source": job.opened.digest()}, out, is_folder=True)
    with exclusive_work(plan, force=runtime.force) as work:
        if not work.cached:
            _make(job, work)
        _check_bad(_listed_bad(out if work.cached else work.folder), config.max_bad)
        if not work.cached:
            facts = {"source": source, "max_bad": config.max_bad}
            work.publish_folder(facts, digests=_digests(work.folder))
        index = open_shards(out).index
    return ShardResult(
        out=out,
        cached=work.cached,
        splits={name: split.samples for name, split in index.splits.items()},
        shards=sum(len(split.shards) for split in index.splits.values()),
        bytes=sum(shard.bytes for split in index.splits.values() for shard in split.shards),
        labels=_class_summaries(index.splits),
        bad=index.bad,
        left_out=index.left_out,
        changes=index.changes,
        fingerprint=index.fingerprint,
    )


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of the tars, found while they were written."""
    index = validated(SetIndex, read_json(folder / INDEX), str(folder / INDEX))
    shards = (shard for split in index.splits.values() for shard in split.shards)
    return {shard.name: shard.sha256 for shard in shards}


def _class_summaries(splits: Mapping[str, SplitIndex]) -> dict[str, ClassSummary]:
    """By label; the classes of a label are the same in all splits that have it."""
    found = {}
    for split in splits.values():
        for label, names in split.labels.items():
            count = split.classes[label]
            ends = (names[0], names[-1]) if names else ("0", str(count - 1))
            having = tuple(name for name, other in splits.items() if label in other.labels)
            found[label] = ClassSummary(classes=count, first=ends[0], last=ends[1], splits=having)
    return found


def _keep_source(where: Path | None, out: Path) -> None:
    """Refuse an output whose making would remove what is read."""
    if where is not None and out.resolve() in (where.resolve(), *where.resolve().parents):
        raise IjepaError(f"{out} holds the images themselves; choose another output.")


class _Job(NamedTuple):
    """What was asked for."""

    source: str
    opened: Source
    config: ShardConfig
    runtime: Runtime
    progress: Progress
    subset: Path | None

    @property
    def workers(self) -> int:
        """Processes that write shards."""
        return CPU_WORKERS if self.runtime.workers is None else self.runtime.workers


def _make(job: _Job, work: Work) -> None:
    """Fill the work folder; what is there already was made by the same plan, and is kept."""
    folder = work.folder
    if not (folder / INDEX).exists():
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()
        labels, plan = _plan(job, folder)
        reports = _write_shards(job, plan, work)
        _write_index(job, labels, reports, plan.left_out(), folder)
    shutil.rmtree(folder / SOURCE, ignore_errors=True)
    for name in ["plan-*.db", *(f"*.tar{suffix}" for suffix in SIDECARS)]:
        for made in folder.glob(name):
            made.unlink()


def _plan(job: _Job, folder: Path) -> tuple[Mapping[str, Labels], ShardPlan]:
    """Which image goes where; the list of images is read once, and not again after a kill."""
    (folder / SOURCE).mkdir(exist_ok=True)
    contents = job.opened.read(folder / SOURCE, job.config.splits, job.workers, job.progress)
    if job.config.val_fraction and set(contents.splits) == {DEFAULT_SPLIT}:
        contents = _with_val(contents, job.config.val_fraction)
    elif job.config.val_fraction:
        there = ", ".join(sorted(contents.splits))
        log.info("%s has splits, %s; a share for val changes nothing", job.source, there)
    # The plan holds paths: begun elsewhere, it would look for images in the wrong place.
    path = folder / f"plan-{fingerprint_of([str(Path.cwd()), job.source])[:16]}.db"
    if path.exists():
        return contents.splits, ShardPlan(path)
    subset = Subset(job.subset) if job.subset else None
    images = _new_images(contents, subset, job.progress)
    if job.config.shuffle:
        images = shuffled(folder / "shuffle.tmp", images)
    plan = write_plan(path, images, job.config.shard_bytes, contents.left_out)
    if subset:
        subset.check_all_found()
    if not any(shard.num_images for shard in plan.shards()):
        raise IjepaError(f"{job.source} holds no image in what was chosen.")
    return contents.splits, plan


def _with_val(contents: Contents, fraction: float) -> Contents:
    """Move a share of the images to `val`; which ones depends on their names alone."""

    def moved(item: Item) -> Item:
        digest = hashlib.sha256(item.name.encode(errors="surrogateescape")).digest()
        is_val = int.from_bytes(digest[:8]) < fraction * 2**64
        return item._replace(split="val") if is_val else item

    splits = dict(contents.splits) | {"val": contents.splits[DEFAULT_SPLIT]}
    return Contents(splits, map(moved, contents.items), contents.left_out)


def _new_images(
    contents: Contents, subset: Subset | None, progress: Progress
) -> Iterator[NewImage]:
    for number, item in enumerate(contents.items, start=1):
        if number % REPORT_IMAGES == 0:
            progress("list images", number, None)
        if subset is not None and not subset.holds(item.split, item.name, item.path):
            contents.left_out["images that --subset does not list"] += 1
            continue
        for label, number_of_class in item.labels.items():
            if number_of_class == UNKNOWN:
                contents.left_out[f"labels {label} that are not known"] += 1
        metadata = {"file": _printable(item.path), **item.metadata}
        place = (item.file, item.offset, item.size_bytes)
        yield NewImage(item.split, item.name, *place, item.labels, metadata)


def _write_shards(job: _Job, plan: ShardPlan, work: Work) -> dict[str, list[ShardReport]]:
    """Write what is not written yet; reports of all shards, by split and in order."""
    shards = plan.shards()
    tasks = [
        ShardTask(plan=plan.path, shard=shard, folder=work.folder, config=job.config)
        for shard in shards
    ]
    reports = {task.shard.name: report for task in tasks if (report := finished(task))}
    total = sum(shard.num_images for shard in shards)
    done = sum(shard.num_images for shard in shards if shard.name in reports)
    num_bad = sum(len(report.bad) for report in reports.values())

    def count(images: int) -> None:
        nonlocal done
        done += images
        job.progress("shard images", done, total, {"bad": num_bad} if num_bad else None)

    count(0)
    left = [task for task in tasks if task.shard.name not in reports]
    with contextlib.closing(write_shards(left, job.workers, count, work.lock)) as written:
        for report in written:
            reports[report.index.name] = report
            num_bad += len(report.bad)
            if num_bad > job.config.max_bad:
                break
    _check_bad([bad for report in reports.values() for bad in report.bad], job.config.max_bad)
    by_split: dict[str, list[ShardReport]] = {}
    for shard in shards:
        by_split.setdefault(shard.split, []).append(reports[shard.name])
    return by_split


def _write_index(
    job: _Job,
    labels: Mapping[str, Labels],
    reports: Mapping[str, list[ShardReport]],
    left_out: dict[str, int],
    folder: Path,
) -> None:
    """Offsets of all splits, the images left out, and last `index.json`."""
    splits = {}
    for split, shards in reports.items():
        names = {label: _names(facts) for label, facts in sorted(labels[split].items())}
        splits[split] = SplitIndex(
            samples=sum(report.index.samples for report in shards),
            classes={label: labels[split][label].num_classes for label in names},
            labels=names,
            shards=[report.index for report in shards],
        )
        _join_rows(folder, split, shards)
    bad = [line for shards in reports.values() for report in shards for line in report.bad]
    if bad:
        lines = "".join(line.model_dump_json() + "\n" for line in bad)
        write_bytes(folder / BAD, lines.encode())
        left_out = {UNDECODED: len(bad), **left_out}
    changes = Counter[str]()
    for shards in reports.values():
        for report in shards:
            changes.update(report.changes)
    index = SetIndex(
        schema_version=SCHEMA,
        source=_printable(job.source),
        fingerprint=_contents_fingerprint(splits),
        bad=len(bad),
        splits=splits,
        left_out=_shortened(left_out),
        changes=changes,
    )
    write_json(folder / INDEX, index.model_dump())


def _shortened(left_out: Mapping[str, int]) -> dict[str, int]:
    """The commonest reasons; files may have any number of suffixes."""
    ordered = Counter(left_out).most_common()
    shown = {_printable(reason): number for reason, number in ordered[:MOST_REASONS]}
    rest = sum(number for _, number in ordered[MOST_REASONS:])
    return shown | ({"files of other kinds": rest} if rest else {})


def _contents_fingerprint(splits: Mapping[str, SplitIndex]) -> str:
    return fingerprint_of(
        {
            name: {"labels": split.labels, "shards": [shard.sha256 for shard in split.shards]}
            for name, split in splits.items()
        }
    )


def _join_rows(folder: Path, split: str, reports: list[ShardReport]) -> None:
    """One file of offsets for a split, without holding it in memory."""
    samples = sum(report.index.samples for report in reports)
    if samples == 0:
        raise IjepaError(f"No image of split {split} decodes; {folder} tells why.")
    rows = np.lib.format.open_memmap(rows_path(folder, split), "w+", ROW, (samples,))
    first = 0
    for report in reports:
        part = np.load(folder / f"{report.index.name}.npy")
        rows[first : first + len(part)] = part
        first += len(part)
    rows.flush()


def _check_bad(bad: list[BadImage], max_bad: int) -> None:
    if len(bad) <= max_bad:
        return
    shown = "; ".join(f"{image.path}: {image.reason}" for image in bad[:SHOWN_BAD])
    more = f"; and {len(bad) - SHOWN_BAD:,} more" if len(bad) > SHOWN_BAD else ""
    raise IjepaError(
        f"At least {len(bad):,} images do not decode, {max_bad:,} are allowed ({shown}{more}); "
        f"mend them, or leave them out with --max-bad."
    )


def _listed_bad(out: Path) -> list[BadImage]:
    path = out / BAD
    lines = path.read_text().splitlines() if path.exists() else []
    return [BadImage.model_validate_json(line) for line in lines]


def _names(label: Label) -> list[str] | None:
    return [_printable(name) for name in label.names] if label.names is not None else None


def _sha256(subset: Path) -> str:
    if not subset.is_file():
        raise IjepaError(f"There is no subset file {subset}.")
    return file_sha256(subset)


def _printable(text: str) -> str:
    """Bytes of a name that are not UTF-8, made readable: such names can be hashed and printed."""
    return text.encode(errors="backslashreplace").decode()
