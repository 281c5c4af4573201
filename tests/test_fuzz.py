"""Whatever it is given, the command line ends with 0, 1 or 2 and without a traceback."""

import contextlib
import io
import json
import re
import shutil
import sys

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import CPU

from ijepa.config import ExtractConfig, ProbeConfig
from ijepa.extract import extract
from ijepa.probe import probe
from ijepa_cli.main import COMMANDS, main

FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)
)
DEEP, LONG = "[" * 100_000, "9" * 5_000

words = st.sampled_from(
    ["--data", "--out", "--recipe", "--set", "--json", "--split", "x", "", "0", "-1", "nan", "[/]",
     "cifar10", "a.b=c", "seed=.inf", "--workers", "--table", "1=x", "--encoder", "pixels",
     "\x1b[31m", "nowhere/at/all", "--dry-run", "pipe:false{}",
     "{0..9999999999}.tar", "--", "é", "\udcff"]
)  # fmt: skip
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6),
    st.sampled_from([2**31, 2**63, -1, 0, 1e308, float("inf"), "class", "pixels"]),
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below),
    max_leaves=6,
)


def run(*arguments: str) -> str:
    """What the command line prints on standard error; it must end as it should."""
    errors, before = io.StringIO(), sys.argv
    sys.argv = ["ijepa", *arguments]
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(errors),
            pytest.raises(SystemExit) as ended,
        ):
            sys.exit(main())
    finally:
        sys.argv = before
    assert ended.value.code in (None, 0, 1, 2), arguments
    assert "Traceback" not in errors.getvalue()
    return errors.getvalue()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made(shards, tmp_path_factory):
    """Features of pixels and a result on them."""
    folder = tmp_path_factory.mktemp("made")
    for split in ("train", "val"):
        config = ExtractConfig(encoder="pixels", image_px=8, split=split)
        extract(shards, folder / f"{split}.h5", config, CPU)
    pair = (folder / "train.h5", folder / "val.h5")
    probe(pair, [], folder / "r.json", ProbeConfig(name="knn"), CPU)
    return folder


@FEW
@given(command=st.sampled_from(COMMANDS), rest=st.lists(words, max_size=6))
def test_command_lines(command, rest):
    run(command, *rest)


@FEW
@given(
    key=st.sampled_from(
        ["seed", "data.image_px", "data.mean", "predictor.depth", "predictor.dim", "encoder.arch",
         "encoder.position_scale", "masks.num_targets", "masks.kind", "optimization.final_lr",
         "optimization.epochs", "targets.layers", "watch.num_images", "base", "x.y"]
    ),
    value=trees,
)  # fmt: skip
def test_recipes(tmp_path, key, value):
    group, _, name = key.rpartition(".")
    body = {group: {name: value}} if group else {name: value}
    (tmp_path / "r.yaml").write_text(json.dumps({"base": "cifar10", **body}))
    run("visualize", "masks", "--recipe", "r.yaml", "--out", "no/m.gif")
    run("pretrain", "--recipe", "r.yaml", "--data", "none", "--out", "o", "--dry-run")
    run("pretrain", "--recipe", "cifar10", "--set", f"{key}={json.dumps(value)}", "--data", "none",
        "--out", "o", "--dry-run")  # fmt: skip


PRETRAIN = "pretrain --recipe r.yaml --data {shards} --out o --dry-run"
SHARD = "shard l.jsonl out --workers 0"
REPORT = "report r.json --out r.html"
BRACES = (
    "pretrain --recipe cifar10 --data file:///x/{}.tar --out o --set stream.epoch_images=2000000"
)
UNREADABLE = "braces|cannot be read|stream.epoch_images"


@pytest.mark.parametrize(
    ("text", "command", "message"),
    [
        ("base: r.yaml", PRETRAIN, "cannot be its own base"),
        ("base: 3", PRETRAIN, "no recipe"),
        (DEEP, PRETRAIN, "nested too deeply"),
        (f"seed: {LONG}", PRETRAIN, "not YAML"),
        (BOMB, PRETRAIN, "more than 10,000"),
        ("a: &a [*a]", PRETRAIN, "more than 10,000"),
        ("encoder: {arch: " + LONG + "x1x1}", PRETRAIN, "no architecture"),
        ("predictor: {depth: 2147483648}", PRETRAIN, "predictor.depth"),
        ("data: {image_px: 16000}", PRETRAIN, "patches"),
        ("encoder: {position_scale: .inf}", PRETRAIN, "position_scale"),
        ("optimization: {final_lr: .inf}", PRETRAIN, "final_lr"),
        ("data: {mean: [.nan, 0, 0]}", PRETRAIN, "data.mean"),
        (DEEP, SHARD, "cannot be read as a UTF-8 list of images"),
        (f'{{"path": {LONG}}}', SHARD, "cannot be read as a UTF-8 list of images"),
        ('{"path": "x", "n": ' + DEEP, SHARD, "cannot be read as a UTF-8 list of images"),
        (DEEP, REPORT, "r.json"),
        (f'{{"probe": {LONG}}}', REPORT, "r.json"),
        ("[]", REPORT, "r.json"),
        ("\x00", REPORT, "r.json"),
        ('{"probe": NaN}', REPORT, "r.json"),
        ("", BRACES.replace("{}", "{000000000..999999999}.tar"), UNREADABLE),
        ("", BRACES.replace("{}", "{1..{2.tar"), UNREADABLE),
        ("", BRACES.replace("{}", "{a,b}" * 30), UNREADABLE),
    ],
)
def test_what_is_made_to_do_harm_is_one_line(tmp_path, shards, text, command, message):
    for name in ("r.json", "l.jsonl"):
        (tmp_path / name).write_text(text)
    is_alone = "base" in text or text == DEEP
    (tmp_path / "r.yaml").write_text(text if is_alone else f"base: cifar10\n{text}")
    found = run(*command.replace("{shards}", str(shards)).split())
    assert re.search(message, found)
    assert len(found.strip().splitlines()) == 1
    assert len(found) < 2_000


@FEW
@given(rows=st.lists(trees, max_size=4), ending=st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_lists(tmp_path, rows, ending):
    lines = [json.dumps({"path": row} if ending == ".jsonl" else row) for row in rows]
    (tmp_path / f"l{ending}").write_text("\n".join(["path,class", *lines][ending == ".jsonl" :]))
    run("shard", f"l{ending}", "out", "--workers", "0")


@FEW
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_index_files(shards, tmp_path, place, value, cut):
    copy = tmp_path / "set"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(shards, copy)
    (copy / "stage.json").unlink()  # else its checksums end it here
    path = copy / "val.index.npy"
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content[: place % len(content)] if cut else content)
    run("extract", "--encoder", "pixels", "--data", "set", "--split", "val", "--image-size", "8",
        "--out", "f.h5", "--workers", "0", "--device", "cpu", "--force")  # fmt: skip


@pytest.mark.parametrize("name", ["checksums", "keys", "image_id", "labels/class"])
def test_columns_that_claim_more_than_the_file_holds_are_one_line(made, tmp_path, name):
    shutil.copy(made / "val.h5", tmp_path / "f.h5")
    with h5py.File("f.h5", "r+") as store:
        dtype = store[name].dtype
        del store[name]
        store.create_dataset(name, (2**40,), dtype, chunks=(512,))
    assert f"but 1,099,511,627,776 {name}" in run("features", "check", "f.h5")


def test_keys_that_claim_to_be_wider_than_the_file_are_one_line(made, tmp_path):
    shutil.copy(made / "val.h5", tmp_path / "f.h5")
    with h5py.File("f.h5", "r+") as store:
        rows = len(store["keys"])
        del store["keys"]
        store.create_dataset("keys", (rows,), f"S{2**30}", chunks=(1,))
    assert "keys claims" in run("features", "check", "f.h5")


@FEW
@given(
    key=st.sampled_from(
        ["probe", "test_rows", "correct", "schema_version", "test_classes", "repeats"]
    ),
    value=trees,
    inside=st.booleans(),
)
def test_result_files(made, tmp_path, key, value, inside):
    body = json.loads((made / "r.json").read_text())
    body[0 if inside else -1][key] = value
    (tmp_path / "r.json").write_text(json.dumps(body))
    run("report", "r.json", "--out", "r.html")


def test_an_index_of_huge_offsets_is_one_line(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "set")
    (tmp_path / "set" / "stage.json").unlink()
    path = tmp_path / "set" / "val.index.npy"
    rows = np.load(path)
    rows["offset"][3], rows["shard"][5] = 2**63 + 1, 2**31
    np.save(path, rows)
    found = run("extract", "--encoder", "pixels", "--data", "set", "--split", "val",
                "--out", "f.h5", "--image-size", "8", "--workers", "0",
                "--device", "cpu")  # fmt: skip
    assert "val.index.npy is damaged" in found
