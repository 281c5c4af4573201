"""Tables of the paper (Assran et al., CVPR 2023) from `paper.yaml`: what results stand beside."""

from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

import yaml

GROUPS = {"plain": "no view augmentations", "views": "view augmentations"}
IN1K_DATA, IN22K_DATA = "IN1k", "IN22k"
IN22K_IMAGES = 13_000_000  # of some 14.2 million; what is left varies with the day of the download


class TaskData(NamedTuple):
    """The data set of a task, whole; numbers on any other are none of the column's.

    Attributes:
        kind: of the source, as `ijepa shard KIND:PATH` has it.
        label: that is probed.
        classes: how many it has.
        train_images: likewise `test_images`, of the splits that the paper took.
    """

    kind: str
    label: str
    classes: int
    train_images: int
    test_images: int


class Column(NamedTuple):
    """A task of a table.

    Attributes:
        task: its name.
        protocols: by which its numbers were made; the first is the nearest.
        data: that it is measured on.
        few_images: how many training images have labels; None where all have.
    """

    task: str
    protocols: tuple[str, ...]
    data: TaskData
    few_images: int | None


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        method: such as `I-JEPA`; in ablations, what was varied.
        arch: such as `ViT-H/14`.
        epochs: of pretraining; None where the table has none.
        values: percent, one a column.
        group: one of `GROUPS` for methods, the pretraining data for table 5, else empty.
        recipe: of the package, that pretrains it; empty for the methods of others.
    """

    method: str
    arch: str
    epochs: int | None
    values: tuple[float, ...]
    group: str
    recipe: str


class Table(NamedTuple):
    """One table of the paper.

    Attributes:
        varies: settings of pretraining, as `--set` names them, by which the rows of an ablation
            differ; empty where rows differ in more than settings.
        free: further settings that differ between rows and are not the point.
    """

    number: int
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    varies: tuple[str, ...]
    free: tuple[str, ...]


def _tables(body: Mapping[str, Any]) -> tuple[Table, ...]:
    data = {name: TaskData(**facts) for name, facts in body["data"].items()}
    columns = {
        task: Column(task, tuple(one["protocols"]), data[one["data"]], one.get("few_images"))
        for task, one in body["columns"].items()
    }
    return tuple(
        Table(
            one["number"],
            one["title"],
            tuple(columns[task] for task in one["columns"]),
            tuple(_row(row) for row in one["rows"]),
            tuple(one.get("varies", ())),
            tuple(one.get("free", ())),
        )
        for one in body["tables"]
    )


def _row(body: Mapping[str, Any]) -> Row:
    group = body.get("group", "")
    return Row(
        body["method"],
        body["arch"],
        body.get("epochs"),
        tuple(body["values"]),
        GROUPS.get(group, group),
        body.get("recipe", ""),
    )


_BODY = yaml.safe_load(resources.files("ijepa").joinpath("paper.yaml").read_text())
TABLES = _tables(_BODY)
FOREIGN: Mapping[str, str] = _BODY["foreign"]  # what `--encoder` calls files, by a row's method


def pretraining_data(row: Row) -> str:
    """What a row's encoder was pretrained on, whole."""
    return IN22K_DATA if row.group == IN22K_DATA else IN1K_DATA


def pretraining_epochs(row: Row) -> tuple[int, ...]:
    """Epochs that an encoder of a row may have seen.

    Tables 3 to 5 name none: there, those of table 1 hold; on ImageNet-22K those of the released
    configurations, and what their files' names count in epochs of ImageNet-1K.
    """
    if row.epochs is not None:
        return (row.epochs,)
    if row.group == IN22K_DATA:
        return (66, 900) if row.arch == "ViT-H/14" else (44, 600)
    same = (r.epochs for r in TABLES[0].rows if (r.method, r.arch) == (row.method, row.arch))
    return tuple(epochs for epochs in same if epochs is not None)


def pretraining_set(source: str, images: int) -> str | None:
    """What a run was pretrained on, as the tables call it; None for all but these sets, whole.

    Args:
        source: of the shard set, as the user typed it.
        images: how many it has.
    """
    kind, imagenet = source.partition(":")[0], TABLES[0].columns[0].data
    if kind == imagenet.kind and images == imagenet.train_images:
        return IN1K_DATA
    return IN22K_DATA if kind == "imagenet22k" and images >= IN22K_IMAGES else None


def tables_by(protocol: str) -> tuple[int, ...]:
    """Numbers of the tables that have a column made by a protocol, as scores name it."""
    columns = ((table.number, column) for table in TABLES for column in table.columns)
    return tuple(
        dict.fromkeys(number for number, column in columns if protocol in column.protocols)
    )
