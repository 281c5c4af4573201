"""The page in a real browser: no complaints, whole tables, heads that sort."""

import json
import shutil
import subprocess

import pytest
from test_probe import pair
from test_report import Page

from ijepa.config import ProbeConfig
from ijepa.paper import TABLES
from ijepa.probe import probe
from ijepa.report import report

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--v=0", "--dump-dom",
)  # fmt: skip
# Press the head `top-1` of the first table of scores twice, and write down what is seen.
PRESS = """<script>
const head = document.querySelector("table.scores thead th:nth-child(2)");
const seen = [];
for (let times = 0; times < 2; times++) {
  head.querySelector("button").click();
  const first = head.closest("table").tBodies[0];
  seen.push([head.getAttribute("aria-sort"),
    [...first.rows].map((row) => Number(row.cells[1].dataset.value))]);
}
document.body.dataset.seen = JSON.stringify(seen);
</script></body>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


def browse(path, folder):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, complaints


def test_the_browser_sorts_and_has_nothing_to_complain_of(run, tmp_path):
    noise = [
        pair(tmp_path, f"noise {n}", signal=n, encoder=f"noise {n}", weights_sha256=f"{n + 1:064d}")
        for n in (1, 0)
    ]
    result = tmp_path / "r.json"
    probe(pair(tmp_path), noise, result, ProbeConfig(name="logistic"))
    out = tmp_path / "report.html"
    report([result, run], out)
    pressed = tmp_path / "pressed.html"
    pressed.write_text(out.read_text().replace("</body>", PRESS))
    text, complaints = browse(pressed, tmp_path / "profile")
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
