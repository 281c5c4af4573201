"""A number of ours stands in a row of the paper only if it is that row; all else stays apart."""

import pytest
from test_probe import LOGISTIC, pair

from ijepa.errors import IjepaError
from ijepa.lineage import Lineage, run_family
from ijepa.paper import TABLES
from ijepa.probe import probe
from ijepa.recipes import load_recipe
from ijepa.results.beside import beside_paper
from ijepa.results.groups import grouped
from ijepa.results.pretraining import known_settings
from ijepa.results.record import joined_source
from ijepa.results.scaled import scaled_tables
from ijepa.results.stand_ins import stand_in_tables

PUBLISHED = Lineage(method="I-JEPA", arch="ViT-H/14", epochs=300, data="IN1k")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Any result, to be told otherwise what it is of."""
    folder = tmp_path_factory.mktemp("plain")
    return probe(pair(folder), [], folder / "r.json", LOGISTIC).result


def of(result, lineage, which="target", **facts):
    """The result as if its encoder were another, made on other data."""
    weights = run_family(which, lineage.model_dump())
    origin = result.scores[0].origin.model_copy(
        update={"lineage": lineage, "which": which, "weights_sha256": weights}
    )
    score = result.scores[0].model_copy(update={"origin": origin})
    return result.model_copy(update={"scores": (score,), **facts})


def cifar100(result, lineage=PUBLISHED, **facts):
    """As the column CIFAR100 of table 3 has it."""
    whole = {
        "protocol": "vissl-cifar100",
        "source": "cifar100:somewhere",
        "num_classes": 100,
        "train_rows": 50_000,
        "test_rows": 10_000,
    }
    return of(result, lineage, **whole | facts)


def filled(*results):
    """(table, task, method, arch, group) of every cell of the paper that holds a number of ours."""
    tables = beside_paper(grouped(results), known_settings(results, []))
    return [
        (table.number, table.task, cell.method, cell.arch, cell.group)
        for table in tables
        for cell in table.cells
        if cell.ours
    ]


def test_the_very_row_is_filled_with_its_difference(plain):
    result = cifar100(plain)
    assert {cell[:4] for cell in filled(result)} == {
        (number, "CIFAR100", "I-JEPA", "ViT-H/14") for number in (3, 5)
    }
    tables = beside_paper(grouped([result]), {})
    (cell,) = [c for t in tables if t.number == 3 for c in t.cells if c.ours]
    assert cell.difference == pytest.approx(100 * result.scores[0].top1 - 87.5)


def test_a_context_encoder_fills_no_row_and_is_named_there(plain):
    """Such as the hub's I-JEPA: the paper evaluates the target encoder."""
    context, target = cifar100(plain, which="context"), cifar100(plain)
    assert filled(context) == []
    notes = {
        cell.note
        for table in beside_paper(grouped([context]), {})
        for cell in table.cells
        if (table.task, cell.method, cell.arch) == ("CIFAR100", "I-JEPA", "ViT-H/14")
    }
    assert any("is its context encoder, the paper's is the target encoder" in n for n in notes)
    assert filled(context, target) == filled(target)


def test_splits_that_were_sharded_apart_fill_their_cell(plain):
    source = joined_source("cifar100:elsewhere", "cifar100:archive")
    assert filled(cifar100(plain, source=source)) == filled(cifar100(plain))


@pytest.mark.parametrize(
    "facts",
    [
        {"source": "scenes:train=10"},
        {"source": joined_source("folder:mine", "cifar100:archive")},
        {"source": joined_source("", "cifar100:archive")},
        {"protocol": "linear"},
        {"label": "coarse"},
        {"num_classes": 20},
        {"train_rows": 5_000},
        {"test_rows": 1_000},
    ],
)
def test_other_data_or_another_protocol_fills_no_cell(plain, facts):
    assert filled(cifar100(plain, **facts)) == []


@pytest.mark.parametrize(
    "change", [{"method": "MAE"}, {"arch": "ViT-B/16"}, {"epochs": 100}, {"data": None}]
)
def test_another_encoder_fills_no_cell(plain, change):
    assert filled(cifar100(plain, PUBLISHED.model_copy(update=change))) == []


def test_every_row_without_a_number_says_why(plain):
    tables = beside_paper(grouped([plain]), {})
    cells = [cell for table in tables for cell in table.cells]
    assert len(cells) == sum(len(t.rows) * len(t.columns) for t in TABLES)
    assert all(cell.note.startswith("not run: ") for cell in cells)
    assert any("--encoder mae:FILE" in cell.note for cell in cells if cell.method == "MAE")


def test_other_test_images_are_another_table_not_another_row(plain):
    results = [cifar100(plain), cifar100(plain, test_images="f" * 64)]
    tables = [t for t in beside_paper(grouped(results), {}) if t.number == 3 and t.protocol]
    assert [sum(bool(c.ours) for c in t.cells) for t in tables if t.task == "CIFAR100"] == [1, 1]


def small(result, *settings, seed=0):
    """A result of a small run with settings."""
    body = load_recipe("scenes-mini", settings).model_dump(mode="json", exclude={"seed"})
    family = run_family("I-JEPA", body)
    lineage = Lineage(method="I-JEPA", family=family, seed=seed, settings=body)
    return of(result, lineage, source="scenes:train=10", seed=seed)


def test_runs_that_differ_in_their_masks_alone_make_table_6_at_scale(plain):
    block = ("masks.kind=block", "masks.min_keep=10")
    results = [small(plain), small(plain, seed=1), small(plain, *block)]
    (table,) = scaled_tables(grouped(results), known_settings(results, []))
    assert table.number == 6
    ours = {row.name: row.ours and len(row.ours.members) for row in table.rows}
    assert ours == {"multi-block": 2, "rasterized": None, "block": 1, "random": None}
    assert filled(*results) == []


def test_a_table_at_this_scale_has_the_results_that_were_meant_for_it_and_a_column_a_group(plain):
    other = plain.model_copy(update={"label": "count"})
    apart = plain.model_copy(update={"test_images": "other"})
    tables = stand_in_tables([plain, other, apart], {4: {other.seal}, 1: {plain.seal, apart.seal}})
    assert [table.number for table in tables] == [1, 4]
    assert [column.test_images for column in tables[0].columns] == [plain.test_images, "other"]
    assert [column.label for column in tables[1].columns] == ["count"]
    (row,) = tables[0].rows
    assert [line.top1 for line in row.lines] == [plain.scores[0].top1] * 2


def test_an_encoder_that_was_scored_in_two_ways_has_two_rows(plain):
    origin = plain.scores[0].origin.model_copy(update={"transform": "squashed"})
    score = plain.scores[0].model_copy(update={"origin": origin, "top1": 0.5})
    squashed = plain.model_copy(update={"scores": (score,)})
    meant = {1: {plain.seal, squashed.seal}}
    (table,) = stand_in_tables([plain, squashed], meant)
    assert [row.lines[0].top1 for row in table.rows] == [plain.scores[0].top1, 0.5]
    assert table.rows[1].encoder == f"{origin.encoder}, scored otherwise (2)"


def test_a_table_that_the_paper_does_not_have_is_refused(plain):
    with pytest.raises(IjepaError, match="The paper has no table 15; its tables are 1 to 14"):
        stand_in_tables([plain], {15: {plain.seal}})


def test_runs_that_differ_in_more_make_no_table(plain):
    results = [small(plain), small(plain, "masks.kind=block", "optimization.epochs=3")]
    assert scaled_tables(grouped(results), known_settings(results, [])) == ()


def test_results_that_do_not_tell_their_settings_are_known_by_the_runs_given(plain):
    choices = [(), ("masks.kind=random", "masks.min_keep=10")]
    results = [small(plain, *choice) for choice in choices]
    silent = [
        of(r, r.scores[0].origin.lineage.model_copy(update={"settings": None}), source=r.source)
        for r in results
    ]
    assert scaled_tables(grouped(silent), known_settings(silent, [])) == ()
    runs = [load_recipe("scenes-mini", choice) for choice in choices]
    assert len(scaled_tables(grouped(silent), known_settings(silent, runs))) == 1
