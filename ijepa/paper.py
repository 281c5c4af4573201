"""Tables of the paper (Assran et al., CVPR 2023) from `paper.yaml`, to compare results with."""

from collections.abc import Mapping
from importlib import resources

import yaml

from ijepa.config import Config

IN1K_DATA, IN22K_DATA = "IN1k", "IN22k"
IN22K_IMAGES = 13_000_000  # of some 14.2 million; what is left varies with the day of the download


class Column(Config):
    """A task of a table; only scores on the same data set, whole, belong into its column."""

    task: str
    protocols: tuple[str, ...]  # by which its numbers were made; the first is the nearest
    kind: str  # of the source, as `ijepa shard KIND:PATH` has it
    label: str
    classes: int
    train_images: int  # of the split that the paper trained on
    test_images: int
    few_images: int | None = None  # how many training images have labels; None where all have


class Row(Config):
    """One line of a table."""

    method: str  # such as `I-JEPA`; in ablations, what was varied
    arch: str  # such as `ViT-H/14`
    epochs: int | None = None  # of pretraining; None where the table has none
    values: tuple[float, ...]  # percent, one a column
    group: str = ""  # with or without view augmentations; the pretraining data for table 5
    recipe: str = ""  # of the package, that pretrains it; empty for the methods of others


class Table(Config):
    """One table of the paper."""

    number: int
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    # Settings of pretraining, as `--set` names them, by which the rows of an ablation differ; empty
    # where rows differ in more than settings. `free` ones differ, too, and are not the point.
    varies: tuple[str, ...] = ()
    free: tuple[str, ...] = ()


_BODY = yaml.safe_load(resources.files("ijepa").joinpath("paper.yaml").read_text())
_COLUMNS = {task: Column(task=task, **facts) for task, facts in _BODY["columns"].items()}
TABLES = tuple(
    Table(**table | {"columns": [_COLUMNS[task] for task in table["columns"]]})
    for table in _BODY["tables"]
)
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
    """What the tables call a shard set of so many images; None for all but these sets, whole.

    `source` is what the shard set was made from, as the user typed it.
    """
    kind, imagenet = source.partition(":")[0], TABLES[0].columns[0]
    if kind == imagenet.kind and images == imagenet.train_images:
        return IN1K_DATA
    return IN22K_DATA if kind == "imagenet22k" and images >= IN22K_IMAGES else None


def tables_by(protocol: str) -> tuple[int, ...]:
    """Numbers of the tables that have a column made by a protocol, as scores name it."""
    return tuple(t.number for t in TABLES if any(protocol in c.protocols for c in t.columns))
