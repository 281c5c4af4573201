"""The code of the page "Python" runs as it stands, and so does the notebook."""

import json
import re
from pathlib import Path

import pytest

from ijepa.data.shards import open_shards

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"(<!-- run first -->\n)?```python\n(.*?)```", re.DOTALL)
SMALLER = {"train=2000,val=500": "train=128,val=32"}


def smaller(text, changes):
    """The same text with less to compute."""
    for long, short in changes.items():
        assert long in text, long
        text = text.replace(long, short)
    return text


def test_the_blocks_of_the_page_run_after_those_that_make_their_files(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "api.md").read_text()
    blocks = BLOCK.findall(smaller(page, SMALLER))
    first = [code for mark, code in blocks if mark]
    assert len(first) == 1
    assert len(blocks) >= 5
    names = {}
    exec(first[0], names)  # noqa: S102  # the page's own
    for number, name in enumerate(("a.png", "b.png")):
        open_shards("shards/scenes").split("val")[number][0].save(name)
    for code in (code for mark, code in blocks if not mark):
        exec(code, names)  # noqa: S102  # the page's own
    assert names["last_two"].shape == (2, 256)
    assert names["tokens"].shape == (1, 64, 128)
    assert names["vectors"].shape[1] == 128
    assert names["names"] == [str(number) for number in range(3, 11)]
    printed = capsys.readouterr()
    assert printed.err == ""
    for words in ("Encoder('runs/scenes (target)'", "ShardSet(", "Features('val.h5'", "top-1"):
        assert words in printed.out


SHORTER = {"train=3000,val=1000": "train=128,val=64", "epochs=4": "epochs=1"}


@pytest.mark.slow
def test_the_notebook_runs_cell_after_cell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "quickstart.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = smaller("\0".join(code), SHORTER)
    names = {}
    for cell in text.split("\0"):
        exec(cell, names)  # noqa: S102  # the notebook's own
    assert (tmp_path / "pca.png").is_file()
    assert (tmp_path / "report.html").is_file()


def test_the_notebook_is_small_and_shows_what_its_cells_really_gave():
    path = DOCS / "quickstart.ipynb"
    assert path.stat().st_size < 200_000
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
