"""The paper's tables are there whole, and stand beside results of the same protocol."""

import pytest

from ijepa.config import FINETUNE_PROTOCOLS
from ijepa.paper import TABLES, pretraining_set, tables_by
from ijepa.probes.protocols import PROTOCOLS

BY_NUMBER = {table.number: table for table in TABLES}


@pytest.mark.parametrize(
    ("number", "rows", "sum_of_values"),
    [  # added up by hand from the published tables
        (1, 13, 998.0),
        (2, 11, 788.7),
        (3, 5, 927.7),
        (4, 5, 767.1),
        (5, 3, 1077.6),
        (6, 4, 107.5),
        (7, 2, 107.6),
        (8, 6, 227.5),
        (9, 4, 181.8),
        (10, 4, 133.7),
        (11, 2, 123.4),
        (12, 2, 130.9),
        (13, 2, 294.3),
        (14, 2, 139.1),
    ],
)
def test_every_number_of_every_table_is_there(number, rows, sum_of_values):
    table = BY_NUMBER[number]
    assert len(table.rows) == rows
    assert all(len(row.values) == len(table.columns) for row in table.rows)
    total = sum(value for row in table.rows for value in row.values)
    assert total == pytest.approx(sum_of_values)


def test_protocols_of_the_tables_are_those_that_results_name():
    named = {
        protocol for table in TABLES for column in table.columns for protocol in column.protocols
    }
    ours = set(PROTOCOLS["linear"]) | {f"finetune-{name}" for name in FINETUNE_PROTOCOLS}
    ours |= {f"{probe}-{name}" for probe in ("logistic", "few-shot") for name in PROTOCOLS[probe]}
    assert named <= ours


def test_a_protocol_finds_its_tables():
    assert tables_by("vissl-cifar100") == (3, 5)
    assert tables_by("logistic-msn") == (6, 7, 8, 9, 10, 11, 12)
    assert tables_by("finetune-imagenet-1pct") == (2, 13, 14)
    assert tables_by("knn") == ()


def test_only_whole_data_sets_are_called_by_their_names():
    assert pretraining_set("imagenet:/data", 1_281_167) == "IN1k"
    assert pretraining_set("imagenet:/data", 128_116) is None
    assert pretraining_set("scenes:train=10", 1_281_167) is None
    assert pretraining_set("imagenet22k:/data", 14_197_122) == "IN22k"
