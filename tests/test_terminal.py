"""Commands in a pseudo-terminal: what a user sees at 60 and 80 columns, and types next."""

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import typer

from ijepa.recipes import dump_yaml
from ijepa_cli.main import app

ROOT = typer.main.get_command(app)
TOLD = re.compile(r"^(pretrain|extract|probe|finetune|shard|train-decoder): .+", re.MULTILINE)
MODULES = """
import sys
class Watch:  # says in the stream of messages when torch is imported
    def find_spec(self, name, *_):
        if name == "torch" and "torch" not in sys.modules:
            sys.stderr.write("\\nTORCH IS IMPORTED\\n")
sys.meta_path.insert(0, Watch())
sys.argv[0] = "ijepa"
from ijepa_cli.main import main
main()
"""


def seen(columns, *arguments, program=("-m", "ijepa")):
    """Run `ijepa ARGUMENTS` in a terminal of so many columns: exit code, lines without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    running = subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=kept | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's end of a terminal
            part = b""
        if not part:
            break
        text += part
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())
    return running.wait(), [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def next_commands(lines):
    return [shlex.split(line.removeprefix("next: ")) for line in lines if line.startswith("next: ")]


def assert_can_be_typed(words):
    """The command and all of its options exist, and nothing that it needs is missing."""
    assert words[0] == "ijepa"
    command = ROOT.commands[words[1]]
    rest = words[2:]
    if hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[1], rest)


@pytest.fixture(scope="module")
def trained(shards, tiny_config, tmp_path_factory):
    """Lines of the same training at each width, and its run."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "tiny.yaml").write_text(dump_yaml(tiny_config))
    words = ["pretrain", "--recipe", folder / "tiny.yaml", "--data", shards, "--device", "cpu"]
    shown = {}
    for columns in (60, 80):
        out = folder / f"run of {columns}"
        code, shown[columns] = seen(columns, *words, "--workers", "0", "--out", out)
        assert code == 0, shown[columns]
    return shown, out


@pytest.mark.parametrize("columns", [60, 80])
def test_bar_counts_rate_time_left_and_numbers_in_words_fit_the_terminal(trained, columns):
    bars = [line for line in trained[0][columns] if re.match(r"pretrain +\d+% ", line)]
    assert max(map(len, bars)) <= columns
    bar = r"pretrain +\d+% .* +\d+/512 +([\d.]+|\?)/s (ETA|in) [\d:?]+(, [A-Za-z ]+[\d.]+%?)*"
    assert all(re.fullmatch(bar, line) for line in bars), bars
    assert re.match(r"pretrain 100% .* 512/512 .*/s in \d\d:\d\d", bars[-1])
    if columns == 80:
        assert re.search(r", neighbours [\d.]+%, loss [\d.]+", bars[-1])


def test_what_is_logged_stands_above_the_bar(trained):
    """A warning about few epochs comes while the bar is drawn."""
    assert not [line for line in trained[0][80] if re.search(r"warning: .*\d/512", line)]


def test_training_ends_with_start_and_end_a_word_on_it_and_the_next_command(trained):
    lines = trained[0][80]
    text = "\n".join(lines)
    assert re.search(r"^pretrained .* in .+: 16 steps, 512 images", text, re.MULTILINE)
    assert re.search(r"RankMe +[\d.]+ -> [\d.]+ ", text)
    assert re.search(r"nearest neighbours +[\d.]+% -> [\d.]+% right", text)
    assert "too early to tell" in text
    [words] = next_commands(lines)
    assert_can_be_typed(words)


def test_what_will_run_is_said_before_torch_is_imported(shards, trained, tmp_path):
    words = ["extract", "--encoder", trained[1], "--data", shards, "--split", "val"]
    words += ["--device", "cpu", "--out", tmp_path / "val.h5"]
    lines = seen(80, *words, program=("-c", MODULES))[1]
    torch = lines.index("TORCH IS IMPORTED")
    told = [line for line in lines[:torch] if TOLD.match(line)]
    assert told
    assert "(val, 64 images), last 4 layers, on cpu" in "".join(lines[:torch])


@pytest.mark.parametrize(
    ("split", "file", "page"),
    [
        ("train", "train.h5", "logistic.html"),
        ("val", "a.test.h5", "a.logistic.html"),
        ("evaluation", "ev.1.h5", "ev.1-logistic.html"),
    ],
)
def test_each_summary_names_the_next_command_and_typing_them_leads_to_a_page(
    ijepa, shards, trained, tmp_path, split, file, page
):
    """From the run on, type what is said until there is a report."""
    words = ["extract", "--encoder", trained[1], "--data", shards, "--split", split]
    words, done = [*words, "--out", tmp_path / file, "--layers", "1"], []
    while words:
        code, out, _ = ijepa(*words)
        assert code == 0
        done.append(words[0])
        words = []
        for found in next_commands(out.splitlines())[:1]:  # none after the report
            assert_can_be_typed(found)
            words = found[1:]
    assert done == ["extract", "extract", "probe", "report"]
    assert str(trained[1]) in found  # the page shows the run, too
    assert (tmp_path / page).is_file()


@pytest.mark.parametrize("command", ["shard", "pretrain"])
def test_a_cached_answer_is_one_line_and_the_summary(shards, trained, command):
    words = {
        "shard": ["shard", shards.parent / "images", shards],
        "pretrain": ["pretrain", "--recipe", trained[1] / "config.yaml", "--data", shards,
                     "--out", trained[1]],
    }[command]  # fmt: skip
    code, lines = seen(80, *words)
    assert code == 0
    assert lines[0].startswith("cached: ")
    assert not [line for line in lines if TOLD.match(line)]


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("ijepa pretrain --recipe scenes", "scenes-mini"),
        ("ijepa pretrain --recipe reproduce/mini/bl", "reproduce/mini/block.yaml"),
        ("ijepa probe linear --protocol vissl-inat", "vissl-inat18"),
        ("ijepa extract --data SHARDS --split v", "val"),
        ("ijepa extract --encoder simcl", "simclrv2:"),
    ],
)
def test_the_shell_completes_names(shards, typed, answer):
    words = typed.replace("SHARDS", str(shards))
    asked = {"_IJEPA_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(len(words.split()) - 1)
    script = "import sys; sys.argv = ['ijepa']; from ijepa_cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | asked, cwd=Path(__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == [answer]


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("pretrain --recipe cifr10", "cifar10"),
        ("pretrain --recipe cifar10 --set optimisation.epochs=1", "optimization"),
        ("pretrain --recipe cifar10 --set lr=1", "optimization.lr"),
        ("pretrain --recipe cifar10 --set data.split=trian", "train"),
        ("pretrain --recipe cifar10 --set encoder.arch=vit_smal", "vit_small"),
        ("extract --encoder pixels --split vall", "val"),
        ("extract --encoder rndom:vit_tiny", "random:vit_tiny"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(ijepa, shards, tmp_path, words, near):
    code, _, err = ijepa(*words.split(), "--data", shards, "--out", tmp_path / "out.h5")
    assert code == 1
    assert f"did you mean {near}?" in err.replace("'", "")


@pytest.mark.parametrize(
    ("words", "near"), [("pretain", "pretrain"), ("pretrain --recpie x", "--recipe")]
)
def test_a_mistyped_command_or_option_is_answered_with_the_nearest(ijepa, words, near):
    code, _, err = ijepa(*words.split())
    assert code == 2
    assert near in err


def test_the_version_is_told(ijepa):
    assert ijepa("--version")[:2] == (0, "ijepa 0.1.0\n")
