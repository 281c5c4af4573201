"""The paper's tables with scores of ours beside, and its ablations at the scale of other data.

A score of ours fills a row of the paper only if it is that very row: its encoder (method, network,
epochs, data, and in ablations every setting of the recipe; the target encoder), its data set,
whole, and its protocol. Ablations at other scales compare runs that differ in what the paper's rows
differ in, and in nothing else: they show whether the order that the paper found holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from ijepa.config import PretrainConfig, architecture
from ijepa.files import fingerprint_of
from ijepa.paper import (
    FOREIGN,
    TABLES,
    Column,
    Row,
    Table,
    pretraining_data,
    pretraining_epochs,
)
from ijepa.provenance import run_family
from ijepa.recipes import load_recipe
from ijepa.results.record import Result, Score, source_kinds
from ijepa.results.tables import (
    Cell,
    Group,
    Line,
    Shown,
    grouped,
    percent,
    score_data,
    score_name,
    score_table,
    seeds,
    top1,
)

LIST_TOLERANCE = 0.02  # a drawn percent has a few images more or less than the published list
# Settings of a pretraining without effect on the weights, or a bound that a small grid moves.
ASIDE = ("seed", "watch.", "checkpoint_epochs", "stream.", "masks.min_keep")
# Sizes of the predictor are compared as shares of the encoder's: a small one is as deep or wide.
SHARES = {"predictor.depth": "depth", "predictor.dim": "dim"}

Settings = Mapping[str, Any]  # of a pretraining, by dotted name
Families = Mapping[str, Settings]


def tables(results: Sequence[Result], configs: Iterable[PretrainConfig] = ()) -> list[Shown]:
    """Every table of the paper, its ablations at other scales, and all scores.

    Args:
        results: of probes and fine-tuning.
        configs: of pretraining runs, which tell the settings of encoders that do not.
    """
    groups, known = grouped(results), known_settings(results, configs)
    return [
        *paper_tables(groups, known),
        *ablation_tables(groups, known),
        *(score_table(group) for group in groups),
    ]


def paper_tables(groups: Sequence[Group], known: Families) -> list[Shown]:
    """Every table of the paper, a part for each task, and for each group of ours that fills it."""
    return [
        part
        for table in TABLES
        for column in table.columns
        for part in _parts(table, column, groups, known)
    ]


def _parts(
    table: Table, column: Column, groups: Sequence[Group], known: Families
) -> Iterable[Shown]:
    near: dict[Row, list[Line]] = {row: [] for row in table.rows}
    filled: list[tuple[Group | None, dict[Row, list[Line]]]] = []
    for group in groups:
        if not _is_task(group.score, column):
            continue
        lines: dict[Row, list[Line]] = {}
        for row in table.rows:
            found = [x for x in group.lines if _is_trained_as(x.score, row, table, known)]
            near[row] += found
            lines[row] = [line for line in found if line.score.which == "target"]
        if any(lines.values()):
            filled.append((group, lines))
    for group_or_none, lines in filled or [(None, {})]:
        yield _paper_table(table, column, group_or_none, lines, near)


def _paper_table(
    table: Table,
    column: Column,
    group: Group | None,
    lines: Mapping[Row, list[Line]],
    near: Mapping[Row, list[Line]],
) -> Shown:
    rows, made = [], []
    for row in table.rows:
        paper = row.values[table.columns.index(column)]
        found: list[Line | None] = [*lines.get(row, ())]
        for line in found or [None]:
            rows.append(
                (
                    Cell(text=row.method, note=row.group),
                    Cell(text=row.arch),
                    Cell(text="" if row.epochs is None else str(row.epochs), value=row.epochs),
                    Cell(text=f"{paper:.1f}", value=paper),
                    *(_ours(line, paper) if line else (Cell(), Cell())),
                    Cell(text=_note(line.score) if line else _why_not(row, column, near[row])),
                )
            )
            made.append(line is not None)
    ground = f"; ours {group.score.protocol}, {score_data(group.score)}" if group else ""
    return Shown(
        kind="paper",
        number=table.number,
        title=table.title,
        caption=f"{column.task}{ground}",
        columns=(
            "method", "network", "#epochs", "#paper", "#ours", "#difference",
            "protocol, or why not run",
        ),
        rows=tuple(rows),
        made=tuple(made),
    )  # fmt: skip


def _ours(line: Line, paper: float) -> tuple[Cell, Cell]:
    difference = 100 * line.mean("top1") - paper
    return top1(line), Cell(text=f"{difference:+.2f}", value=difference)


def _note(score: Score) -> str:
    said = [score.protocol, *score.departures]
    if score.best_on_test is not None:
        said.append(f"best head on test, as papers report: {percent(score.best_on_test, 1)}")
    return "; ".join(said)


def _why_not(row: Row, column: Column, near: Sequence[Line]) -> str:
    """What is missing for an empty row; `near` are lines of its pretraining."""
    contexts = [line.score.encoder for line in near if line.score.which != "target"]
    prefix = FOREIGN.get(row.method)
    if contexts:
        reason = f"{contexts[0]} is its context encoder, the paper's is the target encoder"
    elif prefix:
        reason = f"no weights: no result given of --encoder {prefix}FILE"
    else:
        reason = (
            f"no result given of recipe {row.recipe} on {column.data.kind}: by "
            f"{column.protocols[0]}"
        )
    return f"not run: {reason}"


def _is_task(score: Score, column: Column) -> bool:
    """Is it by a protocol of the column, on its data set, whole?"""
    data, few = column.data, column.few_images
    if few is None:
        has_labels = score.train_rows == data.train_images and not score.setting
    elif score.train_rows == data.train_images:
        has_labels = score.setting.partition(" (")[0] in {
            "1% of train",
            f"lists of {few:,} images",
        }
    else:
        has_labels = abs(score.train_rows - few) <= LIST_TOLERANCE * few
    return (
        has_labels
        and score.protocol in column.protocols
        and source_kinds(score.source) == {data.kind}
        and score.label == data.label
        and score.num_classes == data.classes
        and score.test_rows == data.test_images
    )


def _is_trained_as(score: Score, row: Row, table: Table, known: Families) -> bool:
    """Is it of a row's pretraining: in ablations by every setting, else by its provenance?"""
    provenance = score.provenance
    if provenance.data != pretraining_data(row):
        return False
    if table.varies:
        settings = known.get(provenance.family or "")
        return settings is not None and _rest(settings) == _rest(_recipe_settings(row.recipe))
    return (
        provenance.method == row.method
        and provenance.arch == row.arch
        and provenance.epochs in pretraining_epochs(row)
    )


def ablation_tables(groups: Sequence[Group], known: Families) -> list[Shown]:
    """Every ablation of the paper of which a group of other data holds two rows or more."""
    found = []
    for table in (table for table in TABLES if table.varies):
        for group in groups:
            if any(_is_task(group.score, column) for column in table.columns):
                continue
            alike: dict[str, dict[Row, list[Line]]] = {}
            for line in group.lines:
                settings = known.get(line.score.provenance.family or "")
                row = settings and _row_of(table, settings)
                if settings and row:
                    rest = _rest(settings, (*table.varies, *table.free))
                    same = fingerprint_of([line.score.which, rest])
                    alike.setdefault(same, {}).setdefault(row, []).append(line)
            found += [
                _ablation_table(table, group, lines, known)
                for lines in alike.values()
                if len(lines) > 1
            ]
    return found


def _row_of(table: Table, settings: Settings) -> Row | None:
    """Which row of an ablation a pretraining stands for, whatever its scale."""
    for row in table.rows:
        recipe = _recipe_settings(row.recipe)
        if all(_trait(settings, name) == _trait(recipe, name) for name in table.varies):
            return row
    return None


def _ablation_table(
    table: Table, group: Group, lines: Mapping[Row, list[Line]], known: Families
) -> Shown:
    families = [line.score.provenance.family or "" for found in lines.values() for line in found]
    settings = [known[family] for family in families]
    names = dict.fromkeys(name for one in settings for name in one)
    differing = [
        key
        for key in names
        if key not in table.varies and any(one.get(key) != settings[0].get(key) for one in settings)
    ]
    rows, made = [], []
    for row in table.rows:
        found: list[Line | None] = [*lines.get(row, ())]
        for line in found or [None]:
            own = known[line.score.provenance.family or ""] if line else {}
            differs = ", ".join(f"{n} {_setting(own[n])}" for n in differing if n in own)
            ours = (
                (top1(line), Cell(text=line.score.encoder), Cell(text=seeds(line)))
                if line
                else (Cell(text="not run at this scale"), Cell(), Cell())
            )
            paper = Cell(text="; ".join(map(str, row.values)), value=row.values[0])
            rows.append((Cell(text=row.method), paper, *ours, Cell(text=differs)))
            made.append(line is not None)
    return Shown(
        kind="ablation",
        number=table.number,
        title=f"{table.title}, at the scale of {group.score.source or 'unknown data'}",
        caption=f"{score_name(group.score)}; {score_data(group.score)}",
        columns=(
            "row", "#paper, other data", "#ours", "encoder", "+seeds, encoder/probe", "differs in",
        ),
        rows=tuple(rows),
        made=tuple(made),
    )  # fmt: skip


def known_settings(
    results: Sequence[Result], configs: Iterable[PretrainConfig]
) -> dict[str, Settings]:
    """Settings of pretraining by family: as given runs have them, and as results carry them."""
    found: dict[str, Settings] = {}
    for config in configs:
        body = config.model_dump(mode="json", exclude={"seed"})
        found[run_family("I-JEPA", body)] = _flat(body)
    for score in (score for result in results for score in result):
        provenance = score.provenance
        if provenance.method == "I-JEPA" and provenance.family and provenance.settings:
            found[provenance.family] = _flat(provenance.settings)
    return found


@cache
def _recipe_settings(name: str) -> Settings:
    return _flat(load_recipe(name).model_dump(mode="json"))


def _flat(body: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name: `{"masks": {"kind": "block"}}` gives `{"masks.kind": "block"}`."""
    leaves: dict[str, Any] = {}
    for name, value in body.items():
        dotted = f"{prefix}{name}"
        leaves |= _flat(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value}
    return leaves


def _rest(settings: Settings, without: Sequence[str] = ()) -> dict[str, Any]:
    """All that must be equal for a comparison of nothing but `without`."""
    return {
        name: value
        for name, value in settings.items()
        if not name.startswith(ASIDE) and name not in without
    }


def _trait(settings: Settings, name: str) -> object:
    """What a setting comes to at any scale.

    Depth and width of the predictor are shares of the encoder's. Pixels are pixels, normalised or
    not, for the paper does not say which it took.
    """
    value = settings.get(name)
    if name in SHARES and {name, "encoder.arch"} <= settings.keys():
        return value / getattr(architecture(settings["encoder.arch"]), SHARES[name])
    return str(value).removeprefix("normalised-") if name == "targets.space" else value


def _setting(value: object) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
