"""Numbers of the paper (Assran et al., CVPR 2023), as data: what results are shown beside.

Baselines are as their authors report them on ImageNet-1K; on other data sets the paper ran them
with VISSL (A.2). Accuracies are top-1 in percent. Tables 8 to 10 and 12 to 14 are of the appendix.
"""

from typing import NamedTuple

PLAIN, VIEWS = "no view augmentations", "view augmentations"
LINEAR_IN1K = ("vissl-in1k", "vissl-in1k-lars", "paper-in1k-lars")
ONE_PERCENT_PROBE = ("logistic-msn", "few-shot-msn")  # the paper does not name its solver
ONE_PERCENT_TUNED = ("finetune-imagenet-1pct", "finetune-imagenet-1pct-huge")


class Column(NamedTuple):
    """A task, and the protocols by which its numbers were made; the first is the nearest."""

    task: str
    protocols: tuple[str, ...]


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        method: such as `I-JEPA`; in ablations, what was varied.
        arch: such as `ViT-H/14`.
        epochs: of pretraining; None where the table has none.
        values: percent, one a column.
        group: `PLAIN` or `VIEWS` for methods, the pretraining data for table 5, else empty.
    """

    method: str
    arch: str
    epochs: int | None
    values: tuple[float, ...]
    group: str = ""


class Table(NamedTuple):
    """One table of the paper."""

    number: int
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


class PaperNumber(NamedTuple):
    """One cell, with what it is about."""

    table: int
    task: str
    row: Row
    value: float


CIFAR100 = Column("CIFAR100", ("vissl-cifar100",))
PLACES205 = Column("Places205", ("vissl-places205",))
INAT18 = Column("iNat18", ("vissl-inat18",))
COUNT = Column("Clevr/Count", ("vissl-clevr-count",))
DIST = Column("Clevr/Dist", ("vissl-clevr-dist",))
IN1K = Column("ImageNet-1K", LINEAR_IN1K)
PROBED = Column("ImageNet-1K, 1% of labels, linear", ONE_PERCENT_PROBE)
TUNED = Column("ImageNet-1K, 1% of labels, fine-tuned", ONE_PERCENT_TUNED)


def _ablation(number: int, title: str, arch: str, epochs: int, **values: float) -> Table:
    rows = (Row(name.replace("_", " "), arch, epochs, (value,)) for name, value in values.items())
    return Table(number, title, (PROBED,), tuple(rows))


TARGET_SCALES = (
    (0.075, 0.2, 19.2),
    (0.1, 0.2, 39.2),
    (0.125, 0.2, 42.4),
    (0.15, 0.2, 54.2),
    (0.2, 0.25, 38.9),
    (0.2, 0.3, 33.6),
)

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
            Row("I-JEPA", "ViT-B/16", 600, (72.9,), PLAIN),
            Row("I-JEPA", "ViT-L/16", 600, (77.5,), PLAIN),
            Row("I-JEPA", "ViT-H/14", 300, (79.3,), PLAIN),
            Row("I-JEPA", "ViT-H/16 448", 300, (81.1,), PLAIN),
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
            Row("I-JEPA", "ViT-L/16", 600, (69.4,), PLAIN),
            Row("I-JEPA", "ViT-H/14", 300, (73.3,), PLAIN),
            Row("I-JEPA", "ViT-H/16 448", 300, (77.3,), PLAIN),
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
            Row("I-JEPA", "ViT-H/14", None, (87.5, 58.4, 47.6), PLAIN),
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
            Row("I-JEPA", "ViT-H/14", None, (86.7, 72.4), PLAIN),
            Row("DINO", "ViT-B/8", None, (86.6, 53.4), VIEWS),
            Row("iBOT", "ViT-L/16", None, (85.7, 62.8), VIEWS),
        ),
    ),
    Table(
        5,
        "Scale of data and network",
        (CIFAR100, PLACES205, INAT18, COUNT, DIST),
        (
            Row("I-JEPA", "ViT-H/14", None, (87.5, 58.4, 47.6, 86.7, 72.4), "IN1k"),
            Row("I-JEPA", "ViT-H/14", None, (89.5, 57.8, 50.5, 88.6, 75.0), "IN22k"),
            Row("I-JEPA", "ViT-G/16", None, (89.5, 59.1, 55.3, 86.7, 73.0), "IN22k"),
        ),
    ),
    _ablation(
        6, "Masks", "ViT-B/16", 300, multiblock=54.2, rasterized=15.5, block=20.2, random=17.6
    ),
    Table(
        7,
        "Targets",
        (PROBED,),
        (
            Row("target-encoder output", "ViT-L/16", 500, (66.9,)),
            Row("pixels", "ViT-L/16", 800, (40.7,)),
        ),
    ),
    Table(
        8,
        "Scale of the target blocks",
        (PROBED,),
        tuple(
            Row(f"({low}, {high})", "ViT-B/16", 300, (value,)) for low, high, value in TARGET_SCALES
        ),
    ),
    Table(
        9,
        "Scale of the context block",
        (PROBED,),
        tuple(
            Row(f"({low}, 1.0)", "ViT-B/16", 300, (value,))
            for low, value in ((0.4, 31.2), (0.65, 47.1), (0.75, 49.3), (0.85, 54.2))
        ),
    ),
    Table(
        10,
        "Number of target blocks",
        (PROBED,),
        tuple(
            Row(str(number), "ViT-B/16", 300, (value,))
            for number, value in ((1, 9.0), (2, 22.0), (3, 48.5), (4, 54.2))
        ),
    ),
    _ablation(
        11, "Masked after or before the target encoder", "ViT-H/16", 300, output=67.3, input=56.1
    ),
    _ablation(12, "Depth of the predictor", "ViT-L/16", 500, depth_6=64.0, depth_12=66.9),
    Table(
        13,
        "Weight decay",
        (TUNED, IN1K),
        (
            Row("0.04 to 0.4", "ViT-L/16", 600, (69.4, 77.8)),
            Row("0.05", "ViT-L/16", 600, (70.7, 76.4)),
        ),
    ),
    Table(
        14,
        "Width of the predictor",
        (TUNED,),
        (Row("384", "ViT-L/16", 600, (70.7,)), Row("1024", "ViT-L/16", 600, (68.4,))),
    ),
)


def numbers_by(protocol: str) -> list[PaperNumber]:
    """The paper's numbers of methods, made by a protocol; ablations are left out.

    Args:
        protocol: as `ProbeResult.protocol` names it.
    """
    return [
        PaperNumber(table.number, column.task, row, row.values[place])
        for table in TABLES
        for place, column in enumerate(table.columns)
        if protocol in column.protocols
        for row in table.rows
        if row.group
    ]
