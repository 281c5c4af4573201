"""Numbers of the paper (Assran et al., CVPR 2023), as data: what results are shown beside.

Baselines are as their authors report them on ImageNet-1K; on other data sets the paper ran them
with VISSL (A.2). Accuracies are top-1 in percent. Tables 8 to 10 and 12 to 14 are of the appendix.
"""

from typing import NamedTuple

PLAIN, VIEWS = "no view augmentations", "view augmentations"
IN1K_DATA, IN22K_DATA = "IN1k", "IN22k"
IN22K_IMAGES = 13_000_000  # of some 14.2 million; what is left varies with the day of the download
LINEAR_IN1K = ("vissl-in1k", "vissl-in1k-lars", "paper-in1k-lars")
ONE_PERCENT_PROBE = ("logistic-msn", "few-shot-msn")  # the paper does not name its solver
ONE_PERCENT_TUNED = ("finetune-imagenet-1pct", "finetune-imagenet-1pct-huge")


# What `--encoder` calls files of others, by the method of a row.
FOREIGN = {
    "data2vec": "data2vec:", "MAE": "mae:", "CAE": "cae:", "SimCLR v2": "simclrv2:",
    "DINO": "dino:", "iBOT": "ibot:", "BYOL": "byol:", "MSN": "msn:",
}  # fmt: skip
MASKS = (
    "masks.kind", "masks.num_targets", "masks.target_scale", "masks.target_aspect",
    "masks.context_scale", "masks.target_ratio",
)  # fmt: skip


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
    """A task, the protocols by which its numbers were made (the first is the nearest), its data.

    `few_images` is how many training images have labels, where not all have.
    """

    task: str
    protocols: tuple[str, ...]
    data: TaskData
    few_images: int | None = None


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        method: such as `I-JEPA`; in ablations, what was varied.
        arch: such as `ViT-H/14`.
        epochs: of pretraining; None where the table has none.
        values: percent, one a column.
        group: `PLAIN` or `VIEWS` for methods, the pretraining data for table 5, else empty.
        recipe: of the package, that pretrains it; empty for the methods of others.
    """

    method: str
    arch: str
    epochs: int | None
    values: tuple[float, ...]
    group: str = ""
    recipe: str = ""


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
    varies: tuple[str, ...] = ()
    free: tuple[str, ...] = ()


IMAGENET = TaskData("imagenet", "class", 1000, 1_281_167, 50_000)
CIFAR100 = Column(
    "CIFAR100", ("vissl-cifar100",), TaskData("cifar100", "class", 100, 50_000, 10_000)
)
PLACES205 = Column(
    "Places205", ("vissl-places205",), TaskData("places205", "class", 205, 2_448_873, 20_500)
)
INAT18 = Column("iNat18", ("vissl-inat18",), TaskData("inat18", "class", 8142, 437_513, 24_426))
COUNT = Column("Clevr/Count", ("vissl-clevr-count",), TaskData("clevr", "count", 8, 70_000, 15_000))
DIST = Column("Clevr/Dist", ("vissl-clevr-dist",), TaskData("clevr", "dist", 6, 70_000, 15_000))
IN1K = Column("ImageNet-1K", LINEAR_IN1K, IMAGENET)
PROBED = Column("ImageNet-1K, 1% of labels, linear", ONE_PERCENT_PROBE, IMAGENET, 12_811)
TUNED = Column("ImageNet-1K, 1% of labels, fine-tuned", ONE_PERCENT_TUNED, IMAGENET, 12_811)


def _ablation(table: Table, arch: str, epochs: int, *rows: tuple[str, float, str]) -> Table:
    """A table of one column whose rows (name, value, recipe) share network and epochs."""
    filled = (Row(name, arch, epochs, (value,), recipe=recipe) for name, value, recipe in rows)
    return table._replace(rows=tuple(filled))


TABLES = (
    Table(
        1,
        "Linear probing on ImageNet-1K",
        (IN1K,),
        (
            Row("data2vec", "ViT-L/16", 1600, (77.3,), PLAIN),
            Row("MAE", "ViT-B/16", 1600, (68.0,), PLAIN),
            Row("MAE", "ViT-L/16", 1600, (76.0,), PLAIN),
            Row("MAE", "ViT-H/14", 1600, (77.2,), PLAIN),
            Row("CAE", "ViT-B/16", 1600, (70.4,), PLAIN),
            Row("CAE", "ViT-L/16", 1600, (78.1,), PLAIN),
            Row("I-JEPA", "ViT-B/16", 600, (72.9,), PLAIN, "in1k_vitb16_ep600"),
            Row("I-JEPA", "ViT-L/16", 600, (77.5,), PLAIN, "in1k_vitl16_ep600"),
            Row("I-JEPA", "ViT-H/14", 300, (79.3,), PLAIN, "in1k_vith14_ep300"),
            Row("I-JEPA", "ViT-H/16 448", 300, (81.1,), PLAIN, "in1k_vith16-448_ep300"),
            Row("SimCLR v2", "RN152 (2x)", 800, (79.1,), VIEWS),
            Row("DINO", "ViT-B/8", 300, (80.1,), VIEWS),
            Row("iBOT", "ViT-L/16", 250, (81.0,), VIEWS),
        ),
    ),
    Table(
        2,
        "1% of ImageNet-1K, fine-tuned or probed, whichever was better",
        (TUNED,),
        (
            Row("data2vec", "ViT-L/16", 1600, (73.3,), PLAIN),
            Row("MAE", "ViT-L/16", 1600, (67.1,), PLAIN),
            Row("MAE", "ViT-H/14", 1600, (71.5,), PLAIN),
            Row("I-JEPA", "ViT-L/16", 600, (69.4,), PLAIN, "in1k_vitl16_ep600"),
            Row("I-JEPA", "ViT-H/14", 300, (73.3,), PLAIN, "in1k_vith14_ep300"),
            Row("I-JEPA", "ViT-H/16 448", 300, (77.3,), PLAIN, "in1k_vith16-448_ep300"),
            Row("iBOT", "ViT-B/16", 400, (69.7,), VIEWS),
            Row("DINO", "ViT-B/8", 300, (70.0,), VIEWS),
            Row("SimCLR v2", "RN151 (2x)", 800, (70.2,), VIEWS),
            Row("BYOL", "RN200 (2x)", 800, (71.2,), VIEWS),
            Row("MSN", "ViT-B/4", 300, (75.7,), VIEWS),
        ),
    ),
    Table(
        3,
        "Transfer, linear probing",
        (CIFAR100, PLACES205, INAT18),
        (
            Row("data2vec", "ViT-L/16", None, (81.6, 54.6, 28.1), PLAIN),
            Row("MAE", "ViT-H/14", None, (77.3, 55.0, 32.9), PLAIN),
            Row("I-JEPA", "ViT-H/14", None, (87.5, 58.4, 47.6), PLAIN, "in1k_vith14_ep300"),
            Row("DINO", "ViT-B/8", None, (84.9, 57.9, 55.9), VIEWS),
            Row("iBOT", "ViT-L/16", None, (88.3, 60.4, 57.3), VIEWS),
        ),
    ),
    Table(
        4,
        "Low-level tasks, linear probing",
        (COUNT, DIST),
        (
            Row("data2vec", "ViT-L/16", None, (85.3, 71.3), PLAIN),
            Row("MAE", "ViT-H/14", None, (90.5, 72.4), PLAIN),
            Row("I-JEPA", "ViT-H/14", None, (86.7, 72.4), PLAIN, "in1k_vith14_ep300"),
            Row("DINO", "ViT-B/8", None, (86.6, 53.4), VIEWS),
            Row("iBOT", "ViT-L/16", None, (85.7, 62.8), VIEWS),
        ),
    ),
    Table(
        5,
        "Scale of data and network",
        (CIFAR100, PLACES205, INAT18, COUNT, DIST),
        (
            Row(
                "I-JEPA",
                "ViT-H/14",
                None,
                (87.5, 58.4, 47.6, 86.7, 72.4),
                IN1K_DATA,
                "in1k_vith14_ep300",
            ),
            Row(
                "I-JEPA",
                "ViT-H/14",
                None,
                (89.5, 57.8, 50.5, 88.6, 75.0),
                IN22K_DATA,
                "in22k_vith14_ep66",
            ),
            Row(
                "I-JEPA",
                "ViT-G/16",
                None,
                (89.5, 59.1, 55.3, 86.7, 73.0),
                IN22K_DATA,
                "in22k_vitg16_ep44",
            ),
        ),
    ),
    _ablation(
        Table(6, "Masks", (PROBED,), (), MASKS),
        "ViT-B/16",
        300,
        ("multi-block", 54.2, "in1k_vitb16_ep300"),
        ("rasterized", 15.5, "table06_rasterized"),
        ("block", 20.2, "table06_block"),
        ("random", 17.6, "table06_random"),
    ),
    Table(
        7,
        "Targets",
        (PROBED,),
        (
            Row("target-encoder output", "ViT-L/16", 500, (66.9,), recipe="table07_embeddings"),
            Row("pixels", "ViT-L/16", 800, (40.7,), recipe="table07_pixels"),
        ),
        ("targets.space",),
        ("optimization.epochs", "optimization.warmup_epochs"),
    ),
    _ablation(
        Table(8, "Scale of the target blocks", (PROBED,), (), ("masks.target_scale",)),
        "ViT-B/16",
        300,
        ("(0.075, 0.2)", 19.2, "table08_targets-0.075-0.2"),
        ("(0.1, 0.2)", 39.2, "table08_targets-0.1-0.2"),
        ("(0.125, 0.2)", 42.4, "table08_targets-0.125-0.2"),
        ("(0.15, 0.2)", 54.2, "in1k_vitb16_ep300"),
        ("(0.2, 0.25)", 38.9, "table08_targets-0.2-0.25"),
        ("(0.2, 0.3)", 33.6, "table08_targets-0.2-0.3"),
    ),
    _ablation(
        Table(9, "Scale of the context block", (PROBED,), (), ("masks.context_scale",)),
        "ViT-B/16",
        300,
        ("(0.4, 1.0)", 31.2, "table09_context-0.4-1"),
        ("(0.65, 1.0)", 47.1, "table09_context-0.65-1"),
        ("(0.75, 1.0)", 49.3, "table09_context-0.75-1"),
        ("(0.85, 1.0)", 54.2, "in1k_vitb16_ep300"),
    ),
    _ablation(
        Table(10, "Number of target blocks", (PROBED,), (), ("masks.num_targets",)),
        "ViT-B/16",
        300,
        ("1", 9.0, "table10_1-target"),
        ("2", 22.0, "table10_2-targets"),
        ("3", 48.5, "table10_3-targets"),
        ("4", 54.2, "in1k_vitb16_ep300"),
    ),
    _ablation(
        Table(11, "Masked after or before the target encoder", (PROBED,), (), ("targets.masked",)),
        "ViT-H/16",
        300,
        ("output", 67.3, "table11_output-masked"),
        ("input", 56.1, "table11_input-masked"),
    ),
    _ablation(
        Table(12, "Depth of the predictor", (PROBED,), (), ("predictor.depth",)),
        "ViT-L/16",
        500,
        ("6", 64.0, "table12_predictor-depth-6"),
        ("12", 66.9, "table12_predictor-depth-12"),
    ),
    Table(
        13,
        "Weight decay",
        (TUNED, IN1K),
        (
            Row("0.04 to 0.4", "ViT-L/16", 600, (69.4, 77.8), recipe="in1k_vitl16_ep600"),
            Row("0.05", "ViT-L/16", 600, (70.7, 76.4), recipe="table13_weight-decay-0.05"),
        ),
        ("optimization.weight_decay", "optimization.final_weight_decay"),
    ),
    _ablation(
        Table(14, "Width of the predictor", (TUNED,), (), ("predictor.dim",)),
        "ViT-L/16",
        600,
        ("384", 70.7, "table14_predictor-width-384"),
        ("1024", 68.4, "table14_predictor-width-1024"),
    ),
)


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
    kind = source.partition(":")[0]
    if kind == IMAGENET.kind and images == IMAGENET.train_images:
        return IN1K_DATA
    return IN22K_DATA if kind == "imagenet22k" and images >= IN22K_IMAGES else None


def tables_by(protocol: str) -> tuple[int, ...]:
    """Numbers of the tables that have a column made by a protocol.

    Args:
        protocol: as `ProbeResult.protocol` names it.
    """
    columns = ((table.number, column) for table in TABLES for column in table.columns)
    return tuple(
        dict.fromkeys(number for number, column in columns if protocol in column.protocols)
    )
