"""Data set to shard set: every image checked, its bytes untouched, any sample at hand by number."""

import functools
import hashlib
import itertools
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field

from ijepa.config import CPU_WORKERS, RUNTIME, Config, PixelStats, Runtime, ShardConfig, StrPath
from ijepa.config.values import is_file_name
from ijepa.data.decode import DenseLabel
from ijepa.data.index import (
    INDEX,
    LABEL,
    SCHEMA,
    SetIndex,
    ShardIndex,
    SplitIndex,
    check_shards,
    load_rows,
    read_index,
)
from ijepa.data.plan import (
    PlannedShard,
    gather,
    link_parts,
    part_plan,
    read_plan,
    remove_parts,
    shards_of_part,
    write_plan,
)
from ijepa.data.prepare import merged_sums, pixel_stats
from ijepa.data.shards import BAD
from ijepa.data.sources.dense import with_maps
from ijepa.data.sources.items import DEFAULT_SPLIT, Item, Labels, Listing, Request, Source
from ijepa.data.sources.kinds import open_source
from ijepa.data.sources.names import UNKNOWN, class_name, readable
from ijepa.data.write import REPORT, ROWS, BadImage, ShardReport, check_bad, join_rows, write_shards
from ijepa.errors import IjepaError
from ijepa.files import fingerprint_of, read_json, write_bytes, write_json
from ijepa.progress import Progress, automatic
from ijepa.stage import StagePlan, Work, exclusive_work

__all__ = ["INDEX", "ShardResult", "check_shards", "plan_shard", "refuse_place", "shard"]

VERSION = 6
OF_VAL = b"val\0"  # hashed with names: those of a set may have been chosen by their plain hashes
SOURCE = "source"  # in the work folder: what must be unpacked, rendered or encoded first
PROGRESS_EVERY = 10_000
MOST_REASONS = 20  # told one by one; the rest together
SHARD = ShardConfig()
NO_MAPS: Mapping[str, StrPath] = MappingProxyType({})
UNDECODED = "images that do not decode, see bad.jsonl"

log = logging.getLogger(__name__)


class ClassSummary(Config):
    """The classes of one label: how many, names of the first and last, splits that have it."""

    classes: int
    first: str
    last: str
    splits: tuple[str, ...]


class ShardResult(Config):
    """A finished shard set, and what was understood of its source."""

    out: Path
    cached: bool
    splits: dict[str, int]  # samples of each
    shards: int
    bytes: int
    bad: int  # images left out because they do not decode; `bad.jsonl` lists them
    left_out: dict[str, int]  # files and images of the source that did not come along, by reason
    changes: dict[str, int]  # images that were changed, or of which a part is lost, by reason
    # The rest is not known of a part.
    labels: dict[str, ClassSummary] = Field(default_factory=dict)
    dense: dict[str, DenseLabel] = Field(default_factory=dict)  # maps beside images of every split
    pixels: PixelStats | None = None  # of images that are not 8-bit RGB
    fingerprint: str = ""  # of the contents


def shard(
    source: StrPath,
    out: StrPath,
    config: ShardConfig = SHARD,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
    *,
    dense: Mapping[str, StrPath] = NO_MAPS,
) -> ShardResult:
    """Write the images of `source` as a shard set; goes on after a kill where it was.

    With `config.part`, only some shards are written, to a folder beside `out`; with `config.merge`,
    `out` is made of these. It is the same, to the byte, as if it had been written at once.

    Args:
        source: a path, or `kind:path`; see `ijepa.data.sources.kinds`.
        out: the folder to make.
        config: what to write.
        runtime: `workers` processes write, `force` makes it again.
        progress: hears of the images that are done.
        dense: folders with a map for each image, by label: `depth`, or any other name for masks.

    Raises:
        IjepaError: nothing to read, too many images that do not decode, or `out` is not free.
    """
    name = os.fspath(source)
    plan, opened = _planned(name, Path(out), config, dense)
    with exclusive_work(plan, runtime) as work:
        made = plan.out if work.cached else work.folder
        if not work.cached and not (made / INDEX).exists():
            if config.merge:
                link_parts(plan, made)
            try:
                _make(opened, name, plan.out, config, runtime, progress, made)
            except IjepaError:
                if not any(made.glob("*.tar")):  # there is nothing to go on with
                    shutil.rmtree(made / SOURCE, ignore_errors=True)
                    for path in made.glob("plan-*"):
                        path.unlink()
                raise
        if config.part:
            return _publish_part(work, made, config.max_bad)
        bad = (made / BAD).read_text().splitlines() if (made / BAD).exists() else []
        check_bad([BadImage.model_validate_json(line) for line in bad], config.max_bad)
        index = read_index(made)
        shards = [shard for split in index.splits.values() for shard in split.shards]
        facts = {"source": name, "max_bad": config.max_bad}
        _publish(work, facts, shards, "plan-*.db", f"*.tar{ROWS}", f"*.tar{REPORT}")
    if config.merge:
        remove_parts(plan)
    return ShardResult(
        out=plan.out,
        cached=work.cached,
        splits={name: split.samples for name, split in index.splits.items()},
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        labels=_class_summaries(index.splits),
        bad=index.bad,
        left_out=index.left_out,
        changes=index.changes,
        pixels=index.pixels,
        fingerprint=index.fingerprint,
        dense=next(iter(index.splits.values())).dense,
    )


def plan_shard(
    source: StrPath,
    out: StrPath,
    config: ShardConfig = SHARD,
    *,
    dense: Mapping[str, StrPath] = NO_MAPS,
) -> StagePlan:
    """What `shard` makes of the same arguments; lists the files of the source, reads no image."""
    return _planned(os.fspath(source), Path(out), config, dense)[0]


def _planned(
    name: str, out: Path, config: ShardConfig, dense: Mapping[str, StrPath]
) -> tuple[StagePlan, Source]:
    opened = _opened(name, dense, config)
    sources = [opened.where] if opened.where else []
    for folder in [*sources, *map(Path, dense.values())]:
        refuse_place(folder, out)
    config = config.model_copy(update={"splits": tuple(sorted(set(config.splits)))})
    inputs = {"source": opened.digest()}
    whole = StagePlan("shard", VERSION, config, inputs, out, is_folder=True)
    return (part_plan(whole, config.part) if config.part else whole), opened


def _opened(name: str, dense: Mapping[str, StrPath], config: ShardConfig) -> Source:
    source = open_source(name, folders_are_classes=config.folders_are_classes)
    if odd := [label for label in dense if not is_file_name(label)]:
        raise IjepaError(f"{odd[0]!r} names no maps; write letters, digits, '-', '_' and '.'.")
    if (dense or source.dense) and config.exif == "rotate":
        raise IjepaError("--set exif=rotate turns images, but not their maps; leave it out.")
    return with_maps(source, dense, config.ignored_class, config.depth_scale) if dense else source


def _publish_part(work: Work, made: Path, max_bad: int) -> ShardResult:
    """Keep tars, with the rows and the report of each, for the merge."""
    paths = sorted(made.glob(f"*.tar{REPORT}"))
    reports = [ShardReport.model_validate(read_json(path)) for path in paths]
    bad = [image for report in reports for image in report.bad]
    check_bad(bad, max_bad)
    shards, splits, changes = [report.index for report in reports], Counter[str](), Counter[str]()
    for report in reports:
        splits[report.index.name.rpartition("-")[0]] += report.index.samples
        changes.update(report.changes)
    _publish(work, {"max_bad": max_bad}, shards, "plan-*.db")
    return ShardResult(
        out=work.plan.out,
        cached=work.cached,
        splits=dict(sorted(splits.items())),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        bad=len(bad),
        left_out={UNDECODED.partition(",")[0]: len(bad)} if bad else {},
        changes=changes,
    )


def _publish(
    work: Work, facts: Mapping[str, Any], shards: Iterable[ShardIndex], *needless: str
) -> None:
    """Publish what was made, without the files of the patterns `needless`."""
    if work.cached:
        return
    shutil.rmtree(work.folder / SOURCE, ignore_errors=True)
    for file in [file for pattern in needless for file in work.folder.glob(pattern)]:
        file.unlink()
    work.publish(facts, digests={shard.name: shard.sha256 for shard in shards})


def refuse_place(images: Path, out: Path) -> None:
    """Refuse an output that would replace the images, or be among them the next time."""
    where, place = images.resolve(), out.resolve()
    if where in (place, *place.parents) or place in where.parents:
        raise IjepaError(f"{out} overlaps {images}, which is read; choose another output.")


def _class_summaries(splits: Mapping[str, SplitIndex]) -> dict[str, ClassSummary]:
    """By label; the classes of a label are the same in all splits that have it."""
    found = {}
    every = [named for split in splits.values() for named in split.labels.items()]
    for label, names in dict(every).items():
        having = tuple(name for name, split in splits.items() if label in split.labels)
        first, last = (names[0], names[-1]) if names else ("none", "none")
        found[label] = ClassSummary(classes=len(names), first=first, last=last, splits=having)
    return found


def _make(
    source: Source,
    name: str,
    out: Path,
    config: ShardConfig,
    runtime: Runtime,
    progress: Progress,
    folder: Path,
) -> None:
    """Fill the work folder of `out`; what is there was made by the same plan, and is kept."""
    (folder / SOURCE).mkdir(exist_ok=True)
    workers = CPU_WORKERS if runtime.workers is None else runtime.workers
    arrays = config.channels is not None
    request = Request(folder / SOURCE, config.splits, workers, progress, config.member, arrays)
    contents = source.read(request)
    splits, fraction = dict(contents.splits), config.val_fraction
    if fraction and set(splits) == {DEFAULT_SPLIT}:
        splits["val"] = splits[DEFAULT_SPLIT]
        log.info("%s has no splits: %g%% of its images become val", name, 100 * fraction)
    elif fraction:
        fraction = 0.0
        there = ", ".join(sorted(splits))
        log.info("%s has splits (%s): none of its images are held out as val", name, there)
    # The plan holds paths: begun elsewhere, it would look for images in the wrong place. The list
    # of images is read once, and not again after a kill.
    plan = folder / f"plan-{fingerprint_of([SCHEMA, str(Path.cwd()), name])[:16]}.db"
    if not plan.exists():
        items = _chosen(contents, fraction, out, progress)
        write_plan(plan, items, config.shard_bytes, contents.left_out, shuffle=config.shuffle)
    shards, left_out = read_plan(plan)
    made = {shard.split for shard in shards}
    if fraction and len(made) == 1:
        log.warning(
            "%s has so few images that at a fraction of %g all are %s and none are %s; choose one "
            "nearer to 0.5 with `ijepa shard --val-fraction`",
            name, fraction, *made, *{DEFAULT_SPLIT, "val"} - made,
        )  # fmt: skip
    shards = _own_shards(name, shards, config, folder, progress)
    reports = write_shards(shards, config, workers, progress, source.dense)
    if config.part:
        return
    by_split: dict[str, list[ShardReport]] = {}
    for shard, report in zip(shards, reports, strict=True):
        by_split.setdefault(shard.split, []).append(report)
    _write_index(source.dense, name, splits, by_split, left_out, folder)


def _own_shards(
    name: str, shards: list[PlannedShard], config: ShardConfig, folder: Path, progress: Progress
) -> list[PlannedShard]:
    """Those to write: all, or those of a part; a merge finds all written."""
    if not shards:
        raise IjepaError(f"{name} holds no image in what was chosen.")
    if config.part:
        shards = shards_of_part(shards, config.part)
    if config.shuffle and not config.merge:
        shards = gather(shards, config.member, folder / SOURCE / "gathered.images", progress)
    return shards


def _chosen(
    contents: Listing, val_fraction: float, out: Path, progress: Progress
) -> Iterator[Item]:
    """The images to write; refuses those that `out` would replace, as a list may name."""
    resolved = functools.cache(os.path.realpath)  # of folders
    within = f"{resolved(out)}{os.sep}"
    for number, item in enumerate(contents.items, start=1):
        if f"{resolved(Path(item.file).parent)}{os.sep}".startswith(within):
            raise IjepaError(f"{out} would replace {item.file}; choose another output.")
        if number % PROGRESS_EVERY == 0:
            progress("list images", number, None)
        digest = hashlib.sha256(OF_VAL + item.name.encode(errors="surrogateescape")).digest()
        if int.from_bytes(digest[:8]) < val_fraction * 2**64:
            item = item._replace(split="val")
        yield item


def _write_index(
    dense: Mapping[str, DenseLabel],
    name: str,
    labels: Mapping[str, Labels],
    reports: Mapping[str, list[ShardReport]],
    left_out: dict[str, int],
    folder: Path,
) -> None:
    """Rows of all splits, the images left out, and last `index.json`."""
    splits, bad, changes, unknown = {}, list[BadImage](), Counter[str](), Counter[str]()
    every = [report.classes for found in reports.values() for report in found]
    counted = {label: max(classes[label] for classes in every) for label in dense}
    if empty := next((label for label, count in counted.items() if not count), None):
        raise IjepaError(
            f"{name}: no map of {empty} says anything of its image: depth is 0 or less everywhere, "
            f"or all is of the ignored class {dense[empty].ignored}."
        )
    dense = {label: one.with_names(counted[label]) for label, one in dense.items()}
    for split, found in reports.items():
        names = {
            label: [readable(class_name(name)) for name in known]
            for label, known in sorted(labels[split].items())
        }
        shards = [report.index for report in found]
        splits[split] = SplitIndex(
            samples=sum(shard.samples for shard in shards),
            labels=names,
            index_crc32=join_rows(folder, split, tuple(names), shards, dense),
            shards=shards,
            dense=dense,
        )
        rows = load_rows(folder, split, names, dense)
        for label in names:  # of the images that were taken: a bad one counts as bad alone
            count = int((rows[LABEL + label] == UNKNOWN).sum())
            unknown[f"labels {label} that are not known"] += count
        for report in found:
            bad += report.bad
            changes.update(report.changes)
    if bad:
        write_bytes(folder / BAD, "".join(line.model_dump_json() + "\n" for line in bad).encode())
    left_out = +Counter({UNDECODED: len(bad), **left_out, **unknown})
    ordered = left_out.most_common()  # files may have any number of suffixes
    rest = sum(number for _, number in ordered[MOST_REASONS:])
    measured = {k: [one.pixels for one in found if one.pixels] for k, found in reports.items()}
    of_all = merged_sums([*itertools.chain(*measured.values())])  # refuses pixels of two types
    pixels = merged_sums(measured.get(DEFAULT_SPLIT, [])) or of_all
    contents = {
        split: {"labels": facts.labels, "shards": [shard.sha256 for shard in facts.shards]}
        | {label: one.model_dump() for label, one in dense.items()}
        for split, facts in splits.items()
    }
    index = SetIndex(
        schema_version=SCHEMA,
        source=readable(name),
        fingerprint=fingerprint_of(contents),
        bad=len(bad),
        splits=splits,
        left_out=dict(ordered[:MOST_REASONS]) | ({"files of other kinds": rest} if rest else {}),
        changes=changes,
        pixels=pixel_stats(pixels) if pixels else None,
    )
    write_json(folder / INDEX, index.model_dump())
