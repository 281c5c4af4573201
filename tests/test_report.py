"""The report: every number of the results, all curves of the runs, in a file that loads nothing."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_probe import pair

from ijepa.config import ExtractConfig, MasksConfig, ProbeConfig, ReportConfig, Runtime
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.figures.charts import (
    health_curve,
    interval_plot,
    line_chart,
    run_curves,
)
from ijepa.probe import probe
from ijepa.provenance import Provenance
from ijepa.recipes import load_recipe
from ijepa.records import read_record
from ijepa.report import report
from ijepa.results.page import breakable, verdict
from ijepa.results.record import read_result, result_id, write_result
from ijepa.results.tables import grouped, score_tables
from ijepa.text import printable
from ijepa.visualize import visualize
from ijepa_cli.show import Screen, report_tables


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One result with a baseline of an awkward name, and one with several settings."""
    folder = tmp_path_factory.mktemp("results")
    ours = pair(folder)
    odd = pair(folder, "odd", signal=0.0, encoder="<b>[red]odd\x1b[31m", weights_sha256="1" * 64)
    paths = []
    for name in ("logistic", "few-shot"):
        paths.append(folder / f"{name}.json")
        probe(ours, [odd], paths[-1], ProbeConfig(name=name, shots=(1, 5), draws=2))
    return paths


class Page(HTMLParser):
    """Opened and closed tags, attributes, text."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], [], [], []
        self.attributes = []
        self.feed(text.replace("<wbr>", ""))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def values(self, name):
        return [value for found, value in self.attributes if found == name]

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def terminal(outcome):
    console = Screen(width=200)
    with console.capture() as captured:
        for table in report_tables(outcome):
            console.print(table)
    return " ".join(captured.get().split())


def test_the_page_holds_every_score_and_curve_loads_nothing_and_names_stay_text(
    results, run, tmp_path
):
    outcome = report([*results, run], tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text()
    page = Page(content)
    assert page.open == []
    text, shown = " ".join(page.text), terminal(outcome)
    for score in (score for result in outcome.results for score in result):
        for said in (f"{100 * score.top1:.2f}", printable(score.encoder)):
            assert said in text
            assert said in shown
        assert score.setting in text
    for curve in ("loss", "RankMe", "mean cosine", "learning rate", "EMA momentum"):
        assert curve in text
    assert page.tags.count("svg") >= 7
    assert "versions of 2 results" in content
    assert f"<code>{breakable(str(run))}</code></h3>" in content
    assert breakable("runs/a_<b>") == "runs/<wbr>a_<wbr>&lt;b&gt;"
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert page.tags.count("script") == 1
    assert not {"link", "iframe"} & set(page.tags)
    assert not re.search(r"<b>\[red\]odd|\x1b", content)
    assert not re.search(r"@import|url\(", content)
    links = {address for address in page.addresses if address.startswith("#")}
    assert links <= {f"#{name}" for name in page.values("id")}
    assert sum(link.startswith("#result-") for link in links) == len(results)


def test_reporting_again_answers_cached_until_a_result_changes(results, run, tmp_path):
    out = tmp_path / "report.html"
    assert not report([*results, run], out).cached
    before = out.read_bytes()
    assert report([*results, run], out).cached
    assert not report([*results, run], tmp_path / "other.html").cached
    assert (tmp_path / "other.html").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nothing.json", None, "no result"),
        (".", None, r"not a run folder .*, and holds no result"),
        ("r.json.stage.json", "{}", "nothing to report"),
        *(("odd.json", text, r"odd\.json") for text in ("", "[]", "{}", '{"schema_version": 99}')),
        ("odd.png", "nothing", "odd.png"),
        ("odd.svg", "nothing", "odd.svg"),
    ],
)
def test_what_is_no_result_run_or_picture_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(IjepaError, match=message):
        report([tmp_path / name], tmp_path / "report.html")
    with pytest.raises(IjepaError, match="nothing to report"):
        report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["going", "going.partial"])
def test_a_run_that_is_going_on_is_shown_by_either_name_up_to_its_last_whole_record(
    run, tmp_path, name
):
    going = tmp_path / "going.partial"
    shutil.copytree(run, going, ignore=shutil.ignore_patterns("stage.json", "checkpoints"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (going / "metrics.jsonl").write_text("".join(lines[:8]) + lines[8][:20])
    assert report([tmp_path / name], tmp_path / "r.html").runs == (going,)
    assert report([going, tmp_path / "going"], tmp_path / "r.html").runs == (going,)
    text = (tmp_path / "r.html").read_text()
    assert f"{breakable('going.partial')} is not finished" in text
    assert re.search(r"Step 7 of 16 \(44%\)\. All numbers .* provisional", text)
    epochs = 16 / 7 * json.loads(lines[7])["epoch"]
    note = {"stage": "finetune", "config": {"epochs": epochs, "linear_first": epochs}}
    (going / "work.json").write_text(json.dumps(note))
    report([tmp_path / name], tmp_path / "tuned.html")  # it counts its linear epochs, too
    assert "Step 7 of 32 (22%)" in (tmp_path / "tuned.html").read_text()
    (going / "metrics.jsonl").write_text("")
    with pytest.raises(IjepaError, match="has no record yet"):
        report([going], tmp_path / "other.html")


def drawn_points(chart):
    """(x, y) of each line of a chart, 0 to 1000 from its upper left corner."""
    lines = re.findall(r'class="line c\d" d="M([^"]*)"', chart)
    return [[tuple(map(float, p.split())) for p in line.split("L")] for line in lines]


def test_a_chart_draws_each_point_where_its_numbers_say():
    (line,) = drawn_points(line_chart({"a": ([0, 50, 100], [0, 1, 0])}, "x", "y"))
    (x0, y0), (x1, y1), (x2, y2) = line[:3]
    assert (x0, x1, x2) == (0, 500, 1000)
    assert y0 == y2 > y1


def test_a_chart_of_many_points_stays_small_and_keeps_its_last_and_spikes():
    many, losses = list(map(float, range(100_000))), [1.0] * 100_000
    losses[50_003], losses[70_001] = 100.0, 0.0
    chart = line_chart({"a": (many, many), "b": (many, losses)}, "x", "y")
    assert len(chart) < 30_000
    lines = drawn_points(chart)
    assert all(len(line) <= 242 for line in lines)
    assert {line[-1][0] for line in lines} == {1000}
    (spiked,) = drawn_points(line_chart({"b": (many, losses)}, "x", "y"))
    heights = sorted(y for _, y in spiked)
    assert heights[0] < heights[1] - 500
    assert heights[-1] > heights[-2]


def test_runs_of_one_folder_name_are_each_drawn_and_those_not_drawn_are_named(run, tmp_path):
    runs = [tmp_path / str(n) / "main" for n in range(7)]
    for folder in runs:
        shutil.copytree(run, folder)
    report(runs, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    head = text[: text.index("<h2")]
    assert all(breakable(str(folder)) in head or str(folder) in head for folder in runs)
    assert f"Not drawn: {runs[-1]}." in head.replace("<wbr>", "").replace("\u200b", "")


def test_a_run_that_has_finished_since_is_found_and_what_is_gone_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "main")
    found = report([tmp_path / "main.partial"], tmp_path / "r.html")
    assert found.runs == (tmp_path / "main",)
    with pytest.raises(IjepaError, match=r"gone\.partial"):
        report([tmp_path / "main", tmp_path / "gone.partial"], tmp_path / "r2.html")


def test_a_chart_marks_its_start_and_shows_names_as_text():
    chart = line_chart({"<b>$x$": ([1.0], [2.0]), "other": ([1.0], [3.0])}, "images & more", "y")
    assert chart.count('class="start') == 2
    assert "images &amp; more" in chart
    assert "&lt;b&gt;$x$" in chart
    assert "<b>" not in chart


@pytest.mark.parametrize(("rankme", "middle"), [(3.0, 500), (0.0, 1000)])
def test_the_axes_of_one_point_begin_at_zero_and_its_caption_names_it_once(rankme, middle):
    chart, _ = health_curve({"a": [{"step": 0, "rankme": rankme}]}, 6)
    assert drawn_points(chart.html) == [[(0, middle)]]
    assert re.findall(r'class="x" style="left:0.0%">(.*?)<', chart.html) == ["0"]
    assert chart.caption.startswith(f"Measured once: {rankme:g}. ")


def test_what_never_changes_is_a_line_of_text_and_what_is_no_number_is_left_out():
    records = [{"images": n, "loss": 1 / n, "lr": 0.1, "ema": 1.0} for n in (1, 2, 3)]
    charts, constant = run_curves([*records, {"images": 4, "loss": float("nan")}])
    assert [chart.title for chart in charts] == ["loss"]
    assert charts[0].caption.startswith("From 1 to 0.3333. Bad: it jumps")
    assert constant == "Constant over the run: lr 0.1, ema 1."


def test_nearest_neighbours_are_the_health_curve_if_measured_else_rankme():
    records = [{"images": n, "rankme": n} for n in (0, 1)]
    assert health_curve({"a": records}, 6)[0].title == "RankMe"
    labelled = [one | {"neighbour_accuracy": 0.5} for one in records]
    found, missing = health_curve({"a": records, "b": labelled}, 6)
    assert found.title == "accuracy of nearest neighbours"
    assert missing == ["a"]
    assert health_curve({"a": [{"loss": 1.0}]}, 6) == (None, [])


def test_the_health_curve_is_of_the_first_runs_that_were_measured():
    tuned = {f"tuned {n}": [{"step": n, "loss": 1.0} for n in (0, 1)] for n in range(6)}
    measured = {f"run {n}": [{"images": i, "rankme": i} for i in (0, 1)] for n in range(3)}
    found, missing = health_curve(tuned | measured, 2)
    assert found.caption.startswith("Run 0 from 0 to 1, run 1 from 0 to 1.")
    assert missing == ["run 2"]


def test_intervals_and_chance_are_drawn_where_they_are():
    dots = [("<b>", 0.5, 0.4, 0.6, 1), ("b", 0.9, 0.8, 1.0, 2)]
    plot = interval_plot([("knn on class", 0.1, dots)])
    assert "&lt;b&gt;: 50.00%, interval 40.0 to 60.0, constant guess 10.0" in plot
    points = [float(found) for found in re.findall(r'class="point" style="left:(.*?)%', plot)]
    bars = re.findall(r'class="bar" style="left:(.*?)%;right:(.*?)%', plot)
    chance = float(re.search(r'class="chance" style="left:(.*?)%', plot)[1])
    scale = (points[1] - points[0]) / 0.4
    assert chance == pytest.approx(points[0] - 0.4 * scale, abs=0.1)
    for (left, right), point in zip(bars, points, strict=True):
        assert float(left) == pytest.approx(point - 0.1 * scale, abs=0.1)
        assert 100 - float(right) == pytest.approx(point + 0.1 * scale, abs=0.1)


def scored(result, p_values, **facts):
    """A result whose scores after the first have these top-1s and p values."""
    first = result[0].model_copy(update={"top1": 0.6} | facts)
    others = [
        first.model_copy(
            update={"encoder": name, "top1": top1, "p_value": p, "weights_sha256": name}
        )
        for name, top1, p in p_values
    ]
    return (first, *others)


def test_the_verdict_counts_clear_differences_only_and_says_where_others_are_better(results):
    plain = read_result(results[0])
    random, pixels = "random:runs/a", "pixels@16"
    tested = [
        scored(plain, [(random, 0.5, 1e-5), (pixels, 0.4, 0.004)], label="class"),
        scored(plain, [(random, 0.5, 0.2), (pixels, 0.8, 1e-9)], label="dist"),
    ]
    first, limits = verdict(tested)
    assert first == (
        "The encoder ours beats random initialisation on 1 of 2 probes and raw pixels on 1 of 2; "
        "raw pixels are better on dist (logistic) (McNemar's test, p < 0.01 each). No other "
        "difference is clear."
    )
    assert "one seed" in limits
    seeds = [
        scored(plain, [(random, 0.5, p)], provenance=Provenance(family="f", seed=seed))
        for seed, p in enumerate((0.001, 0.3))
    ]
    (unclear,) = verdict(seeds)  # a difference must be clear with every seed
    assert "on no probe. No difference is clear" in unclear


def test_probes_of_several_data_sets_are_told_apart(results):
    plain = read_result(results[0])
    sources = ("cifar10:a", "cifar100:b")
    found = [scored(plain, [("pixels", 0.5, 0.001)], source=source) for source in sources]
    assert "raw pixels on 2 of 2 probes" in verdict(found)[0]
    titles = [table.title for table in score_tables(grouped(found)) if table.kind == "scores"]
    assert titles == ["Label class of cifar10", "Label class of cifar100"]
    same = [scored(plain, [("pixels", 0.7, 0.001)], source=f"folder:{name}") for name in "ab"]
    assert "better on class (logistic) of folder:a and class (logistic) of fold" in verdict(same)[0]


def test_the_verdict_is_honest_without_baselines_and_without_results(results):
    plain = read_result(results[0])
    assert "no scores yet" in verdict([])[0]
    alone = verdict([plain[:1]])
    assert "of always guessing the most frequent class" in alone[0]
    assert "--baseline-train" in alone[1]
    assert "on average" not in verdict([plain[:1], plain[:1]])[0]
    two = [
        scored(plain, [], top1=top1, provenance=Provenance(seed=top1 > 0.5)) for top1 in (0.5, 0.7)
    ]
    assert "reaches 60.0% on average over 2 scores on class (logistic), above" in verdict(two)[0]


def test_probes_of_one_label_are_columns_of_one_table(results, tmp_path):
    plain = read_result(results[0])
    other = tuple(score.model_copy(update={"protocol": "knn", "top1": 0.25}) for score in plain)
    label = tuple(score.model_copy(update={"label": "count"}) for score in plain)
    found = [t for t in score_tables(grouped([plain, other, label])) if t.kind == "scores"]
    assert [table.columns for table in found] == [
        ("encoder", "#logistic", "#knn"), ("encoder", "#logistic")
    ]  # fmt: skip
    assert [row[0].text for row in found[0].rows] == [score.encoder for score in plain]
    for row, score in zip(found[0].rows, plain, strict=True):
        assert [cell.value for cell in row[1:]] == [score.top1, 0.25]
    assert f"p {plain[1].p_value:.2g}" in found[0].rows[1][1].note


def test_a_table_of_the_paper_is_shown_if_a_result_fills_it_or_if_it_is_chosen(results, tmp_path):
    def numbers(name, **options):
        out = report(results, tmp_path / f"{name}.html", ReportConfig(**options))
        text = out.out.read_text().replace("<wbr>", "")
        assert ("report --paper</code>" in text) == (name != "all")
        return {int(n) for n in Page(text).values("data-table")}

    assert numbers("none") == set()
    assert numbers("two", tables=(2, 6)) == {2, 6}
    assert len(numbers("all", paper=True)) > 10
    with pytest.raises(IjepaError, match="no table 99 of scores; choose from 1, 2"):
        report(results, tmp_path / "r.html", ReportConfig(tables=(99,)))


def test_the_first_screen_names_data_run_date_version_device_and_duration(results, run, tmp_path):
    outcome = report([*results, run], tmp_path / "r.html")
    text = " ".join(" ".join(Page((tmp_path / "r.html").read_text()).text).split())
    record = read_record(run)
    assert (outcome.title, report(results, tmp_path / "s.html").title) == (run.name, "Scores")
    for fact in (record["source"], record["device"], record["finished"][:10], "ijepa 0.1.0"):
        assert fact in text
    for sentence in outcome.verdict:
        assert printable(sentence) in text
    assert report([run], tmp_path / "r.html", ReportConfig(title="<mine>")).title == "<mine>"
    content = (tmp_path / "r.html").read_text()
    assert "<title>&lt;mine&gt;</title>" in content
    assert '"\\00003cmine\\00003e"' in content  # the head of printed pages


def seeded(folder, seed, probe_seed=0, **header):
    provenance = Provenance(family="tiny", seed=seed)
    name = f"{seed}-{probe_seed}-{len(header)}"
    weights = {"weights_sha256": f"{seed:064d}"}
    files = pair(folder, name, provenance=provenance, encoder=f"run {seed}", **weights, **header)
    choice = ProbeConfig(name="logistic", seed=probe_seed)
    return probe(files, [], folder / f"{name}.json", choice).scores


def test_scores_that_differ_in_seeds_only_are_averaged(tmp_path):
    results = [seeded(tmp_path, 0), seeded(tmp_path, 1), seeded(tmp_path, 1, probe_seed=5)]
    ((line,),) = [group.lines for group in grouped([*results, results[0]])]
    top1 = [result[0].top1 for result in results]
    seeds = [(m.score.provenance.seed, m.score.seed) for m in line.members]
    assert seeds == [(0, 0), (1, 0), (1, 5)]
    assert line.mean("top1") == pytest.approx(np.mean(top1))
    assert line.std("top1") == pytest.approx(np.std(top1, ddof=1))
    report([tmp_path / "0-0-0.json", tmp_path / "1-0-0.json"], tmp_path / "page.html")
    assert "over 2 seeds" in (tmp_path / "page.html").read_text()


def test_a_score_measured_again_is_not_averaged_and_if_it_differs_not_hidden(tmp_path):
    first = seeded(tmp_path, 0)
    other = (first[0].model_copy(update={"top1": first[0].top1 - 0.1}),)  # on another machine
    paths = [tmp_path / f"{place}.json" for place in range(3)]
    for path, result in zip(paths, (first, first, other), strict=True):
        write_result(path, result)
    found = report(paths, tmp_path / "page.html")
    ((line,),) = [group.lines for group in grouped(found.results)]
    assert line.mean("top1") == first[0].top1
    assert [member.result for member in line.members] == [result_id(first)]
    assert [member.result for member in line.again] == [result_id(other)]
    assert "again, with the same seeds" in (tmp_path / "page.html").read_text()
    write_result(paths[0], other)
    assert not report(paths[:1], tmp_path / "page.html").cached
    write_result(paths[0], first)
    assert not report(paths[:1], tmp_path / "page.html").cached
    assert "again, with the same seeds" in terminal(found)


def test_what_may_not_be_compared_is_in_another_table_or_line(tmp_path):
    first = seeded(tmp_path, 0)
    assert len(grouped([first, first])) == 1
    for change in ({"protocol": "knn"}, {"label": "other"}, {"source": "other"}):
        assert len(grouped([first, (first[0].model_copy(update=change),)])) == 2
    view = seeded(tmp_path, 1, transform="squash", which="target")
    groups = grouped([first, seeded(tmp_path, 1, rows=60), view])
    assert len(groups) == 2  # other test images are another table
    assert [len(line.members) for group in groups for line in group.lines] == [1, 1, 1]


def test_a_folder_of_results_is_its_results_and_what_stands_beside_them_is_passed_over(
    results, tmp_path, monkeypatch
):
    folder = results[0].parent
    monkeypatch.chdir(folder)
    (folder / "other.json.partial").mkdir()
    beside = sorted(folder.glob("*.json*"))
    assert len(beside) == 2 * len(results) + 1
    for number, named in enumerate((results, [folder], ["."], beside)):
        outcome = report(named, tmp_path / f"{number}.html")
        assert {*map(result_id, outcome.results)} == {result_id(read_result(r)) for r in results}


def test_shard_sets_feature_files_and_pages_that_lie_beside_runs_are_passed_over(
    shards, run, tmp_path, caplog
):
    features, page = tmp_path / "f.h5", tmp_path / "report.html"
    extract(shards, features, ExtractConfig(encoder=f"random:{run}", split="val"))
    for _ in range(2):  # the second time beside the page of the first
        outcome = report([shards, run, *sorted(tmp_path.iterdir())], page)
        assert (outcome.runs, outcome.results, outcome.pictures) == ((run,), (), ())
    assert f"does not show them: {shards} and 2 more" in caplog.text
    with pytest.raises(IjepaError, match="nothing to report"):
        report([shards], tmp_path / "other.html")


def test_pictures_and_commands_are_in_the_page(results, run, tmp_path):
    png, html, svg = (tmp_path / f"picture.{kind}" for kind in ("png", "html", "svg"))
    command = Runtime(command="ijepa visualize masks --recipe cifar10")
    config = MasksConfig(recipe=load_recipe("cifar10"), images=1, batches=1)
    visualize(png, config, runtime=command)
    html.write_text("<p>points &amp; labels</p>")
    svg.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    report([results[0], run, png, html, svg], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    text = " ".join(page.text)
    assert command.command in text
    assert "The context encoder sees the context alone" in text
    assert "There is no record beside the file" in text
    assert page.values("srcdoc") == [html.read_text()]
    with Image.open(png) as drawn:
        assert page.values("width") == 2 * [str(drawn.width // 2)]  # and on the first screen
    images = page.values("src")
    assert sum(address.startswith("data:image/png") for address in images) == 2
    assert sum(address.startswith("data:image/svg") for address in images) == 2


def test_encoders_that_carry_their_settings_are_shown_once(tmp_path):
    provenance = Provenance(
        method="I-JEPA", family="tiny", seed=0, settings={"masks": {"kind": "block"}}
    )
    result = tmp_path / "r.json"
    choice = ProbeConfig(name="few-shot", shots=(1, 5), draws=2)
    probe(pair(tmp_path, provenance=provenance, encoder="mine"), [], result, choice)
    report([result], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<dd>mine, weights") == 1


def test_a_trained_decoder_is_reported_and_nobody_is_told_to_delete_it(run, tmp_path):
    """Its `result.json` is another thing than that of a probe."""
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    (decoder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    (decoder / "config.yaml").write_text("encoder: runs/x\nsteps: 2\n")
    (decoder / "result.json").write_text('{"steps": 2, "loss": 0.25}\n')
    (decoder / "stage.json").write_text('{"stage": "train-decoder", "files": {}}\n')
    outcome = report([decoder], tmp_path / "r.html")
    assert (outcome.runs, outcome.results) == ((decoder,), ())
    text = (tmp_path / "r.html").read_text()
    assert "2 steps; fingerprint" in text
    assert "images seen" not in text
    with pytest.raises(IjepaError, match=r"is not a result of .ijepa probe.*Name another file"):
        report([decoder / "result.json"], tmp_path / "r.html")
