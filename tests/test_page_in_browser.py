"""The page in a real browser: no complaints, whole tables, heads that sort."""

import json
import re
import shutil
import subprocess

import pytest
from test_probe import pair
from test_report import Page

from ijepa.config import ProbeConfig, ReportConfig
from ijepa.paper import TABLES
from ijepa.probe import probe
from ijepa.report import report

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--v=0",
)  # fmt: skip
# Press the head `logistic` of the first table of scores twice, copy it, point at the first chart,
# follow a link into what is folded, and write down what is seen.
PRESS = """<script>
const table = document.querySelector("table.scores"), body = document.body.dataset;
body.markdown = markdown(table);
const head = table.querySelector("thead th:nth-child(2)");
const seen = [];
for (let times = 0; times < 2; times++) {
  head.querySelector("button").click();
  seen.push([head.getAttribute("aria-sort"),
    [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.value))]);
}
body.seen = JSON.stringify(seen);
const area = document.querySelector(".plot .area"), box = area.getBoundingClientRect();
area.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right, bubbles: true }));
body.tip = area.querySelector(".tip").textContent;
document.querySelector("details a.code, td a.code").click();
const { scrollWidth, clientWidth } = document.documentElement;
parent.postMessage(`${scrollWidth} ${clientWidth}`, "*");
setTimeout(() => {
  body.open = String(document.querySelector("article").closest("details").open);
}, 100);
</script></body>"""

NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


def browse(path, folder, *flags):
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, complaints


@pytest.fixture(scope="module")
def pressed(run, tmp_path_factory):
    """A page of a result with two baselines and of a run, with a script that uses it."""
    folder = tmp_path_factory.mktemp("page")
    noise = [
        pair(folder, f"noise {n}", signal=n, encoder=f"noise {n}", weights_sha256=f"{n + 1:064d}")
        for n in (1, 0)
    ]
    result = folder / "r.json"
    probe(pair(folder), noise, result, ProbeConfig(name="logistic"))
    out = report([result, run], folder / "report.html", ReportConfig(paper=True)).out
    out.write_text(out.read_text().replace("</body>", PRESS))
    return out


def test_the_browser_sorts_copies_and_has_nothing_to_complain_of(pressed, tmp_path):
    text, complaints = browse(pressed, tmp_path, "--virtual-time-budget=2000", "--dump-dom")
    assert complaints == []
    page = Page(text)
    (seen,) = page.values("data-seen")
    (up, rising), (down, falling) = json.loads(seen)
    assert (up, down) == ("ascending", "descending")
    assert len(set(rising)) == 3
    assert rising == sorted(rising)
    assert falling == rising[::-1]
    assert len(page.values("data-table")) == sum(len(table.columns) for table in TABLES)
    assert page.tags.count("button") > 20
    head, rule, *rows = page.values("data-markdown")[0].splitlines()
    assert (head, rule) == ("| encoder | logistic |", "| --- | ---: |")
    assert re.fullmatch(r"\| ours \| [\d.]+ \([\d.]+ to [\d.]+\) \|", rows[0])
    assert re.fullmatch(r"\| noise 1 \| [\d.]+ \([\d.]+ to [\d.]+; p \S+\) \|", rows[1])
    assert re.match(r"512 images\ntiny 0\.\d+", *page.values("data-tip"))
    assert page.values("data-open") == ["true"]


def test_a_narrow_page_does_not_scroll_sideways(pressed, tmp_path):
    """Chromium has no window narrower than 500 pixels; a frame has."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="{pressed.as_uri()}" style="width:390px;height:900px"></iframe>'
        "<script>onmessage = (event) => { document.body.dataset.size = event.data; };</script>"
    )
    text, _ = browse(frame, tmp_path / "profile", "--virtual-time-budget=2000", "--dump-dom")
    (size,) = Page(text).values("data-size")
    wanted, there = map(int, size.split())
    assert wanted == there <= 390


def test_a_printed_page_is_numbered_and_holds_what_is_folded(pressed, tmp_path):
    out = tmp_path / "page.pdf"
    browse(pressed, tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={out}")
    pages = out.read_bytes().count(b"/Type /Page\n")
    assert pages > 5
