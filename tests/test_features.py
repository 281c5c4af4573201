"""The feature store: what goes in comes out, kills and full disks cost nothing, damage is seen."""

import contextlib
import errno
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from arrays import header_of, image_ids, write_features
from hypothesis import given, settings
from hypothesis import strategies as st

from ijepa.errors import IjepaError
from ijepa.features.store import open_features
from ijepa.features.write import FeatureWriter, create_features

HEADER = header_of(Path("train.h5"), class_names={"class": ["cat", "dog"], "count": None})


def numbers(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 2, 3)).astype(np.float32)


def labels(rows):
    return {"class": np.arange(rows) % 2, "count": np.arange(rows) + 10}


def names(rows, first=0):
    return [f"häuser/{number:03d}" for number in range(first, first + rows)]


def begin(path, rows=10, dtype="float32", batch_rows=7, header=HEADER):
    create_features(
        path, header, (rows, 2, 3), dtype, keys=names(rows), labels=labels(rows),
        batch_rows=batch_rows,
    )  # fmt: skip
    return FeatureWriter(path)


def add(writer, batch, features, batch_rows=7):
    some = slice(batch * batch_rows, (batch + 1) * batch_rows)
    writer.write(batch, features[some], image_ids(names(len(features)))[some])


def write(path, rows=10, dtype="float32", header=HEADER, keys=None):
    keys = keys or names(rows)
    made = numbers(rows).astype(dtype)
    return write_features(
        path, header, made, keys=keys, labels=labels(rows), image_ids=image_ids(keys)
    )


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 1500),
    batch_rows=st.integers(1, 700),
    dtype=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 100),
)
def test_batches_written_in_any_order_by_any_writers_come_out_in_order(
    tmp_path_factory, rows, batch_rows, dtype, seed
):
    path = tmp_path_factory.mktemp("store") / "f.h5"
    features = numbers(rows)
    batches = np.random.default_rng(seed).permutation(-(-rows // batch_rows)).tolist()
    for done, batch in enumerate(batches):
        if done < 5:  # each by a writer of its own, as after a kill
            writer = begin(path, rows, dtype, batch_rows)
            assert writer.missing == sorted(batches[done:])
        add(writer, batch, features, batch_rows)
    begin(path, rows, dtype, batch_rows).finish()
    with open_features(path) as store:
        expected = features.astype(dtype).astype(np.float32)
        assert store.header == HEADER
        assert store.keys == names(rows)
        assert store.image_ids.tolist() == image_ids(names(rows)).tolist()
        assert store.views is None
        np.testing.assert_equal(store.labels, labels(rows))
        np.testing.assert_array_equal(store.values, features.astype(dtype))
        np.testing.assert_array_equal(store.numpy(), expected[:, 1])
        np.testing.assert_array_equal(store.numpy(layer=0), expected[:, 0])
    np.testing.assert_array_equal(store.numpy(), expected[:, 1])  # behind the block, too
    assert [p.name for p in path.parent.iterdir()] == ["f.h5"]


def test_any_hdf5_reader_finds_the_columns_and_equal_content_gives_equal_bytes(tmp_path):
    first, second = (write(tmp_path / name, dtype="float16") for name in ("a.h5", "b.h5"))
    assert first.read_bytes() == second.read_bytes()
    with h5py.File(first) as store:
        assert store["features"].shape == (10, 2, 3)
        assert store["features"].dtype == np.float16
        assert store["labels/class"].dtype == np.int64
        assert store["keys"].asstr()[0] == "häuser/000"
        assert store.attrs["complete"]


def test_several_views_of_an_image_stand_behind_each_other_under_its_key(tmp_path):
    two = HEADER.model_copy(update={"num_views": 1})
    keys = [key for key in names(5) for _ in range(2)]
    with open_features(write(tmp_path / "f.h5", header=two, keys=keys)) as store:
        assert store.views.tolist() == [0, 1] * 5


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_rows_are_read_in_any_order(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "many.h5"
    if not path.exists():
        write(path, rows=1200, dtype="float16")
    rows = data.draw(st.lists(st.integers(0, 1199), max_size=40) | st.permutations(range(700)))
    rows += list(range(len(rows)))  # with a run of neighbours
    layers = data.draw(st.integers(1, 2))
    with open_features(path) as store:
        found = store.values[np.array(rows, np.int64), -layers:]
    expected = numbers(1200).astype(np.float16)[rows, 2 - layers :]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected)


IMPORTED = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_features import *
path = Path(sys.argv[1])
"""
READ_ALL = """
def own_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
store = open_features(path, check_numbers=len(sys.argv) > 2)
rows = np.random.default_rng(0).permutation(store.shape[0])
before = own_kb()
for some in np.array_split(rows, len(rows) // 256):
    store.values[some]
print(own_kb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what memory is a process's own")
@pytest.mark.parametrize("check", [False, True])
def test_reading_all_rows_takes_the_memory_of_one_batch_beside_the_files_own_pages(tmp_path, check):
    path, rows = tmp_path / "f.h5", 10_000
    keys, every = names(rows), np.ones((rows, 2, 1280), np.float16)
    write_features(path, HEADER, every, keys=keys, labels=labels(rows), image_ids=image_ids(keys))
    assert path.stat().st_size > 50_000_000
    command = [sys.executable, "-c", IMPORTED + READ_ALL, path, *["check"] * check]
    assert int(subprocess.run(command, check=True, capture_output=True).stdout) < 10_000


WRITE_ON = """
for batch in range(300):
    add(begin(path, 2100, "float16"), batch, numbers(2100))
    if batch == 3:
        print("go", flush=True)
"""


def test_a_writer_killed_at_any_moment_goes_on_where_it_was(tmp_path):
    path, rows = tmp_path / "f.h5", 2100
    command = [sys.executable, "-c", IMPORTED + WRITE_ON, path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(IjepaError, match="not a complete feature file"):
        open_features(path)
    writer = begin(path, rows, "float16")
    assert len(writer.missing) <= 300 - 4
    for batch in writer.missing:
        add(writer, batch, numbers(rows))
    writer.finish()
    with open_features(path) as store:
        np.testing.assert_array_equal(store.numpy(), numbers(rows)[:, 1].astype(np.float16))
        assert store.keys == names(rows)


def test_a_kill_at_the_end_costs_no_row_and_a_power_failure_only_those_it_took(tmp_path):
    path = tmp_path / "f.h5"
    for batch in range(2):
        add(begin(path), batch, numbers(10))
    begin(path).finish()
    assert begin(path).missing == []
    damage(path, put("features", 8, 0.0))
    again = begin(path)
    assert again.missing == [1]
    add(again, 1, numbers(10))
    again.finish()
    np.testing.assert_array_equal(open_features(path).numpy(), numbers(10)[:, 1])


def test_rows_of_a_new_file_are_not_read_to_see_that_they_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("ijepa.features.store.checksum_of", pytest.fail)
    assert begin(tmp_path / "f.h5").missing == [0, 1]


def test_keys_of_any_length_and_script_come_back_as_they_were(tmp_path):
    keys = ["a", "ü" * 200, "図/1.jpg", ""]
    assert open_features(write(tmp_path / "f.h5", rows=4, keys=keys)).keys == keys


FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    begin(path, rows=100_000)
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="space is reserved on Linux only")
def test_too_little_space_is_a_clean_error_before_anything_is_encoded(tmp_path):
    path = tmp_path / "f.h5"
    process = subprocess.run([sys.executable, "-c", IMPORTED + FULL_DISK, path], check=False)
    assert process.returncode in (errno.EFBIG, errno.ENOSPC)
    assert begin(path).missing == [0, 1]  # with room, from the beginning


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_numbers_that_do_not_fit_are_refused_when_they_are_written(tmp_path, bad):
    features = numbers(10)
    features[4, 1, 2] = bad
    with pytest.raises(IjepaError, match="häuser/004 are not finite as float16"):
        add(begin(tmp_path / "f.h5", dtype="float16"), 0, features)


def damage(path, how):
    with h5py.File(path, "r+") as store:
        how(store)


def shorten(name):
    def how(store):
        values = store[name][:-1]
        del store[name]
        store[name] = values

    return how


def put(name, place, value):
    return lambda store: store[name].__setitem__(place, value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (shorten("labels/class"), "holds 10 features but 9 labels/class"),
        (shorten("keys"), "holds 10 features but 9 keys"),
        (put("features", (3, 0, 0), 0.5), "rows from 0 on are damaged"),
        (lambda store: store.attrs.pop("complete"), "not a complete feature file"),
        (lambda store: store.attrs.pop("schema"), "not a complete feature file"),
        (lambda store: store.attrs.pop("header"), "not a whole feature file"),
        (lambda store: store.attrs.modify("header", "{}"), "not a whole feature file"),
        (put("image_id", 0, 7), "rows from 0 on are damaged"),
        (put("checksums", 0, 7), "rows from 0 on are damaged"),
        (shorten("checksums"), "holds 10 features but 0 checksums"),
        (lambda store: store.__delitem__("features"), "not a whole feature file"),
    ],
)
def test_a_store_that_is_not_whole_and_sane_is_refused(tmp_path, how, message):
    path = write(tmp_path / "f.h5")
    damage(path, how)
    with pytest.raises(IjepaError, match=message) as error:
        open_features(path)
    assert "\n" not in str(error.value)


def test_what_is_no_store_is_refused(tmp_path):
    for text in ("features", ""):
        (tmp_path / "text.h5").write_text(text)
        with pytest.raises(IjepaError, match="not a whole feature file"):
            open_features(tmp_path / "text.h5")
    with pytest.raises(IjepaError, match="There is no feature file"):
        open_features(tmp_path / "none.h5")


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_a_store_cut_short_or_changed_anywhere_is_refused_or_unharmed(
    tmp_path_factory, position, cut
):
    whole = tmp_path_factory.getbasetemp() / "whole.h5"
    if not whole.exists():
        write(whole)
    path = whole.with_name("damaged.h5")
    shutil.copy(whole, path)
    place = int(position * path.stat().st_size)
    with path.open("r+b") as file:
        if cut:
            file.truncate(place)
        else:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0x10]))
    with open_features(whole) as store:
        expected, keys = store.values.copy(), store.keys
    with contextlib.suppress(IjepaError), open_features(path) as store:  # nothing but IjepaError
        assert not cut
        np.testing.assert_array_equal(store.values, expected)
        assert len(store.keys) == len(keys)


def test_opened_features_say_what_they_are_and_how_many(tmp_path):
    features = open_features(write(tmp_path / "f.h5"))
    assert len(features) == len(features.numpy()) == len(features.keys) == 10
    assert features.class_names["class"][features.labels["class"][1]] == "dog"
    shown = repr(features)
    for words in ("f.h5", "ours", "train", "10 rows of 2 layers x 3", "class (2 classes), count"):
        assert words in shown


def test_a_mistyped_label_layer_or_file_is_answered_in_one_line(tmp_path):
    features = open_features(write(tmp_path / "val.h5"))
    with pytest.raises(IjepaError, match=r"no label 'clas' \(did you mean 'class'\?\); its"):
        features.labels["clas"]
    with pytest.raises(IjepaError, match="stores 2 layers, 0 to 1, not 2"):
        features.numpy(2)
    with pytest.raises(IjepaError, match=r"no feature file .*vel.h5 \(did you mean 'val.h5'\?\)"):
        open_features(tmp_path / "vel.h5")
    with pytest.raises(IjepaError, match="is a folder, not a feature file; make one"):
        open_features(tmp_path)


def test_keys_and_labels_become_a_table_of_pandas_where_it_is_installed(tmp_path, monkeypatch):
    features = open_features(write(tmp_path / "f.h5"))
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    table = features.to_pandas()
    assert list(table) == ["key", "class", "count"]
    assert table["key"] == names(10)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(IjepaError, match="pip install pandas"):
        features.to_pandas()
