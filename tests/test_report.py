"""The report: every number of the results, all curves of the runs, in a file that loads nothing."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from test_probe import pair

from ijepa.config import ProbeConfig
from ijepa.errors import IjepaError
from ijepa.ledger.beside import beside_paper
from ijepa.ledger.groups import grouped
from ijepa.ledger.scaled import scaled_tables
from ijepa.paper import TABLES
from ijepa.probe import probe
from ijepa.report import report
from ijepa.stores.lineage import Lineage
from ijepa.views.chart import Series, line_chart, nice_ticks
from ijepa_cli.score_table import score_table


@pytest.fixture
def results(tmp_path):
    """One result with a baseline of an awkward name, and one with several settings."""
    ours = pair(tmp_path)
    odd = pair(tmp_path, "odd", signal=0.0, encoder="<u>[red]odd", weights_sha256="1" * 64)
    paths = []
    for name in ("logistic", "few-shot"):
        paths.append(tmp_path / f"{name}.json")
        probe(ours, [odd], paths[-1], ProbeConfig(name=name, shots=(1, 5), draws=2))
    return paths


class Page(HTMLParser):
    """Opened and closed tags, attributes, text."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_holds_every_score_and_every_curve(results, run, tmp_path):
    outcome = report([*results, run], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert page.open == []
    text = " ".join(page.text)
    for result in outcome.results:
        for score in result.scores:
            assert f"{100 * score.top1:.2f}" in text
            assert score.origin.encoder in text
            assert score.setting in text
    for curve in ("loss", "RankMe", "mean cosine", "learning rate", "EMA momentum"):
        assert curve in text
    assert page.tags.count("svg") >= 7


def test_the_page_loads_nothing_and_names_stay_text(results, run, tmp_path):
    report([*results, run], tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text()
    page = Page(content)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not {"link", "iframe", "u"} & set(page.tags)
    assert not re.search(r"@import|url\(|fetch\(|https?://(?!arxiv)", content)
    assert "default-src 'none'" in content


def test_reporting_again_answers_cached_until_a_result_changes(results, run, tmp_path):
    out = tmp_path / "report.html"
    assert not report([*results, run], out).cached
    before = out.read_bytes()
    assert report([*results, run], out).cached
    assert not report([*results, run], tmp_path / "other.html").cached
    assert (tmp_path / "other.html").read_bytes() == before


def test_what_is_neither_result_nor_run_is_refused(tmp_path):
    out = tmp_path / "report.html"
    with pytest.raises(IjepaError, match="nothing to report"):
        report([], out)
    with pytest.raises(IjepaError, match="no result"):
        report([tmp_path / "nothing.json"], out)
    with pytest.raises(IjepaError, match="not a run folder"):
        report([tmp_path], out)
    for body in ("", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 99}'):
        (tmp_path / "odd.json").write_text(body)
        with pytest.raises(IjepaError, match=r"odd\.json"):
            report([tmp_path / "odd.json"], out)
    assert not out.exists()


def test_a_run_that_is_still_going_is_shown_up_to_its_last_whole_record(run, tmp_path):
    live = tmp_path / "live"
    live.mkdir()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (live / "metrics.jsonl").write_text("".join(lines[:8]) + lines[8][:20])
    report([live], tmp_path / "report.html")
    assert "7 steps, 224 images seen; not finished" in (tmp_path / "report.html").read_text()
    (live / "metrics.jsonl").write_text("")
    with pytest.raises(IjepaError, match="has no record yet"):
        report([live], tmp_path / "other.html")


def test_the_terminal_table_holds_the_same_numbers(results):
    from rich.console import Console

    from ijepa.stores.results import read_result

    read = [read_result(path) for path in results]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(score_table(read))
    text = captured.get()
    for result in read:
        for score in result.scores:
            assert f"{100 * score.top1:.2f}" in text
            assert score.origin.encoder in text


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ((0, 10), [0, 2.5, 5, 7.5, 10]),
        ((0.1, 0.9), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ((-3, 3), [-4, -2, 0, 2, 4]),
        ((5, 5), None),
        ((0, 0), None),
    ],
)
def test_ticks_are_round_and_hold_the_ends(ends, ticks):
    found = nice_ticks(*ends)
    assert found[0] <= ends[0]
    assert found[-1] >= ends[1]
    assert found[0] < found[-1]
    if ticks:
        assert found == pytest.approx(ticks)


def test_a_chart_draws_each_point_where_its_numbers_say():
    picture = line_chart([Series("a", [0, 50, 100], [0, 1, 0])], "x", "y")
    points = re.search(r'points="([^"]+)"', picture)[1].split()
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points[:3])
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert x0 < x1
    assert y0 == y2 > y1


def test_a_chart_of_many_points_stays_small_and_keeps_the_last():
    many = list(map(float, range(100_000)))
    picture = line_chart([Series("a", many, many)], "x", "y")
    assert len(picture) < 20_000
    assert json.dumps(picture)
    assert len(re.search(r'points="([^"]+)"', picture)[1].split()) <= 402


def seeded(folder, seed, probe_seed=0, **header):
    lineage = Lineage(family="tiny", seed=seed)
    name = f"{seed}-{probe_seed}-{len(header)}"
    files = pair(folder, name, lineage=lineage, encoder=f"run {seed}", **header)
    choice = ProbeConfig(name="logistic", seed=probe_seed)
    return probe(files, [], folder / f"{name}.json", choice).result


def test_scores_that_differ_in_seeds_only_are_averaged(tmp_path):
    results = [seeded(tmp_path, 0), seeded(tmp_path, 1), seeded(tmp_path, 1, probe_seed=5)]
    [group] = grouped([*results, results[0]])
    [line] = group.lines
    top1 = [result.scores[0].top1 for result in results]
    assert [member.seeds for member in line.members] == [(0, 0), (1, 0), (1, 5)]
    assert line.top1 == pytest.approx(np.mean(top1))
    assert line.top1_std == pytest.approx(np.std(top1, ddof=1))


def test_scores_of_other_views_or_unknown_families_are_not_averaged(tmp_path):
    first = seeded(tmp_path, 0)
    squashed = seeded(tmp_path, 1, transform="squash", which="target")
    files = pair(tmp_path, "x", weights_sha256="2" * 64)
    unknown = probe(files, [], tmp_path / "x.json", ProbeConfig(name="logistic"))
    lines = [line for group in grouped([first, squashed, unknown.result]) for line in group.lines]
    assert [len(line.members) for line in lines] == [1, 1, 1]


def changed(result, **values):
    return result.model_copy(update={"fingerprint": str(values), **values})


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "knn"},
        {"label": "count"},
        {"source": "cifar10:elsewhere"},
        {"test_images": "others"},
        {"train_images": "others"},
        {"splits": {"train": "train", "test": "test2"}},
    ],
)
def test_numbers_of_different_protocols_splits_or_images_never_share_a_table(tmp_path, other):
    first = seeded(tmp_path, 0)
    if "splits" in other:
        other = {"splits": first.splits.model_copy(update={"test": "another"})}
    assert len(grouped([first, first])) == 1
    assert len(grouped([first, changed(first, **other)])) == 2


def of_the_paper(result, **lineage):
    """The same numbers, as if of the paper's ViT-H/14 on CIFAR-100 by VISSL's protocol."""
    known = Lineage(method="I-JEPA", arch="ViT-H/14", epochs=300, data="IN1k", **lineage)
    [score] = result.scores
    score = score.model_copy(
        update={"origin": score.origin.model_copy(update={"lineage": known}), "setting": ""}
    )
    return changed(
        result, scores=(score,), source="cifar100:path", protocol="vissl-cifar100", label="class",
        num_classes=100, train_rows=50_000, test_rows=10_000,
    )  # fmt: skip


def filled(results):
    tables = beside_paper(grouped(results), {})
    return [(table, cell) for table in tables for cell in table.cells if cell.ours]


def test_a_cell_of_the_paper_is_filled_by_just_its_row(tmp_path):
    result = of_the_paper(seeded(tmp_path, 0))
    found = filled([result])
    assert [(table.number, table.task) for table, _ in found] == [(3, "CIFAR100"), (5, "CIFAR100")]
    for _, cell in found:
        assert (cell.method, cell.arch, cell.paper) == ("I-JEPA", "ViT-H/14", 87.5)
        assert cell.difference == pytest.approx(100 * cell.ours.top1 - 87.5)


@pytest.mark.parametrize(
    "other",
    [
        {"source": "scenes:val=6000"},
        {"protocol": "linear"},
        {"test_rows": 2_000},
        {"train_rows": 5_000},
        {"num_classes": 10},
    ],
)
def test_numbers_at_another_scale_or_by_another_protocol_fill_no_cell(tmp_path, other):
    assert filled([changed(of_the_paper(seeded(tmp_path, 0)), **other)]) == []


def test_every_cell_that_is_not_filled_says_why(tmp_path):
    cells = [cell for table in beside_paper((), {}) for cell in table.cells]
    numbers = sum(len(row.values) for table in TABLES for row in table.rows)
    assert len(cells) == numbers
    assert all(cell.note.startswith("not run: ") for cell in cells)
    assert any("--encoder mae:FILE" in cell.note for cell in cells)


def test_a_small_ablation_stands_under_the_papers_names_in_a_table_of_its_own(tmp_path):
    from ijepa.ledger.pretraining import recipe_settings

    results, known = [], {}
    for seed, kind in enumerate(("multiblock", "rasterized")):
        family = f"small {kind}"
        recipe = "in1k_vitb16_ep300" if kind == "multiblock" else f"table06_{kind}"
        known[family] = recipe_settings(recipe)
        header = {"lineage": Lineage(family=family, seed=0), "weights_sha256": str(seed) * 64}
        files = pair(tmp_path, kind, **header)
        results.append(probe(files, [], tmp_path / f"{kind}.json", ProbeConfig(name="knn")).result)
    tables = [table for table in scaled_tables(grouped(results), known) if table.number == 6]
    [table] = tables
    ours = {row.name: row.ours.lineage.family for row in table.rows if row.ours}
    assert ours == {"multi-block": "small multiblock", "rasterized": "small rasterized"}


def test_records_beside_results_are_passed_over(results, tmp_path):
    every = sorted(tmp_path.glob("*.json"))
    assert len(every) == 2 * len(results)
    assert len(report(every, tmp_path / "page.html").results) == len(results)


CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--v=0",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_shows_the_page_without_complaint_and_sorts_its_tables(results, run, tmp_path):
    out = tmp_path / "report.html"
    report([*results, run], out)
    clicks = """<script>
    const table = document.querySelector("table.sortable");
    table.querySelector("button").click();
    document.title = table.tHead.rows[0].cells[0].getAttribute("aria-sort");
    </script></body>"""
    out.write_text(out.read_text().replace("</body>", clicks))
    found = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", out.as_uri()],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "CONSOLE" not in found.stderr
    assert "<title>ascending</title>" in found.stdout
