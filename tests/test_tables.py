"""A number of ours stands in a row of the paper only if it is that row; all else stays apart."""

import pytest
from test_probe import LOGISTIC, pair

from ijepa.paper import TABLES
from ijepa.probe import probe
from ijepa.provenance import NO_POOLING, Provenance, run_family
from ijepa.recipes import load_recipe
from ijepa.results.paper_tables import tables_of_paper
from ijepa.results.record import joined_source
from ijepa.results.tables import grouped, score_tables

PUBLISHED = Provenance(method="I-JEPA", arch="ViT-H/14", epochs=300, data="IN1k")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Any result, to be told otherwise what it is of."""
    folder = tmp_path_factory.mktemp("plain")
    return probe(pair(folder), [], folder / "r.json", LOGISTIC).scores


def of(result, provenance, which="target", **facts):
    """The result as if its encoder were another, made on other data."""
    weights = run_family(which, provenance.model_dump())
    other = {"provenance": provenance, "which": which, "weights_sha256": weights, **facts}
    return (result[0].model_copy(update=other),)


def tables_of(kind, results, configs=()):
    groups = grouped(results)
    every = [*tables_of_paper(results, groups, configs), *score_tables(groups)]
    return [one for one in every if one.kind == kind]


def rows(shown):
    """(row, has it a number of ours?) of a table; a row is text by column."""
    for row, made in zip(shown.rows, shown.made, strict=True):
        yield dict(zip(shown.columns, row, strict=True)), made


def paper_rows(*results):
    """((table, task, method, network), row, has it a number of ours?) of all the paper's rows."""
    for shown in tables_of("paper", results):
        for row, made in rows(shown):
            task = shown.caption.partition(";")[0]
            yield (shown.number, task, row["method"].text, row["network"].text), row, made


def filled(*results):
    """Where a number of ours stands in the paper's tables."""
    return [place for place, _, made in paper_rows(*results) if made]


def cifar100(result, provenance=PUBLISHED, **facts):
    """As the column CIFAR100 of table 3 has it."""
    whole = {"protocol": "vissl-cifar100", "source": "cifar100:somewhere", "num_classes": 100}
    whole |= {"train_rows": 50_000, "test_rows": 10_000}
    return of(result, provenance, **whole | facts)


def test_pixels_of_two_patch_sizes_are_two_encoders(plain):
    def pixels(patch_px):
        facts = {"weights_sha256": "0" * 64, "pooling": NO_POOLING}
        return of(plain, Provenance(family="ab" * 32), encoder=f"pixels/{patch_px}@64", **facts)

    [shown] = tables_of("scores", [pixels(4), pixels(8)])
    assert [row[0].text for row in shown.rows] == ["pixels/4@64", "pixels/8@64"]


PLACES = [(number, "CIFAR100", "I-JEPA", "ViT-H/14") for number in (3, 5)]


def test_the_very_row_is_filled_with_its_difference(plain):
    result = cifar100(plain)
    assert {*filled(result)} == {*PLACES}
    (row,) = [row for place, row, made in paper_rows(result) if made and place[0] == 3]
    assert row["#difference"].text == f"{100 * result[0].top1 - 87.5:+.2f}"
    shares = [row[name].value for name in ("#ours", "#paper", "#difference")]
    assert shares == pytest.approx([result[0].top1, 0.875, result[0].top1 - 0.875])
    source = joined_source("cifar100:elsewhere", "cifar100:archive")
    assert filled(cifar100(plain, source=source)) == filled(result)


def test_a_context_encoder_fills_no_row(plain):
    """Such as the hub's I-JEPA: the paper evaluates the target encoder."""
    context, target = cifar100(plain, which="context"), cifar100(plain)
    assert filled(context) == []
    assert filled(context, target) == filled(target)


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
        *(
            {"provenance": PUBLISHED.model_copy(update=change)}
            for change in ({"method": "MAE"}, {"arch": "ViT-B/16"}, {"epochs": 100}, {"data": None})
        ),
    ],
)
def test_other_data_another_protocol_or_encoder_fills_no_cell(plain, facts):
    assert filled(cifar100(plain, **facts)) == []


def test_every_row_without_a_number_says_why(plain):
    found = [(row, made) for _, row, made in paper_rows(plain)]
    assert len(found) == sum(len(t.rows) * len(t.columns) for t in TABLES)
    assert not any(made for _, made in found)
    notes = {row["method"].text: row["protocol, or why not run"].text for row, _ in found}
    assert all(note.startswith("not run: ") for note in notes.values())
    assert "--encoder mae:FILE" in notes["MAE"]


def test_other_test_images_are_another_table_not_another_row(plain):
    results = [cifar100(plain), cifar100(plain, test_images="f" * 64)]
    found = [one for one in tables_of("paper", results) if one.number == 3]
    assert [sum(t.made) for t in found if t.caption.startswith("CIFAR100;")] == [1, 1]


def small(result, *settings, seed=0):
    """A result of a small run with settings."""
    body = load_recipe("scenes-mini", settings).model_dump(mode="json", exclude={"seed"})
    family = run_family("I-JEPA", body)
    provenance = Provenance(method="I-JEPA", family=family, seed=seed, settings=body)
    return of(result, provenance, source="scenes:train=10", seed=seed)


def test_runs_that_differ_in_their_masks_alone_make_table_6_at_scale(plain):
    block = ("masks.kind=block", "masks.min_keep=10")
    results = [small(plain), small(plain, seed=1), small(plain, *block)]
    (shown,) = tables_of("ablation", results)
    assert shown.number == 6
    ours = {row["row"].text: row["+seeds, encoder/probe"].text for row, _ in rows(shown)}
    assert ours == {"multi-block": "0/0, 1/1", "rasterized": "", "block": "0/0", "random": ""}
    assert filled(*results) == []


def test_runs_that_differ_in_more_make_no_table(plain):
    results = [small(plain), small(plain, "masks.kind=block", "optimization.epochs=3")]
    assert tables_of("ablation", results) == []


def test_results_that_do_not_tell_their_settings_are_known_by_the_runs_given(plain):
    choices = [(), ("masks.kind=random", "masks.min_keep=10")]
    results = [small(plain, *choice) for choice in choices]
    silent = [
        of(r, r[0].provenance.model_copy(update={"settings": None}), source=r[0].source)
        for r in results
    ]
    assert tables_of("ablation", silent) == []
    runs = [load_recipe("scenes-mini", choice) for choice in choices]
    assert len(tables_of("ablation", silent, runs)) == 1
