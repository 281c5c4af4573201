"""The feature store: what goes in comes out, kills and full disks cost nothing, damage is seen."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ijepa.data.shards import image_ids
from ijepa.errors import IjepaError
from ijepa.features import writer as feature_writer
from ijepa.features.store import FeatureHeader, is_finite, open_features
from ijepa.features.writer import FeatureWriter

HEADER = FeatureHeader(
    encoder="tiny",
    weights_sha256="0" * 64,
    which="target",
    layers=(0, 1),
    pooling="average",
    image_px=32,
    transform="center-crop",
    data_fingerprint="d",
    split="train",
    class_names={"class": ["cat", "dog"], "count": None},
    fingerprint="f",
)


def numbers(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 2, 3)).astype(np.float32)


def labels(rows):
    return {"class": np.arange(rows) % 2, "count": np.arange(rows) + 10}


def test_finite_are_all_half_precision_numbers_but_infinities_and_nan():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    assert [is_finite(every[n : n + 1]) for n in range(len(every))] == np.isfinite(every).tolist()
    assert is_finite(every[np.isfinite(every)])
    assert is_finite(every[:0])


def names(rows, first=0):
    return [f"häuser/{number:03d}" for number in range(first, first + rows)]


def append(writer, features, labels, keys, **options):
    """Rows whose images are their keys' bytes."""
    writer.append(features, labels, keys, image_ids([key.encode() for key in keys]), **options)


def write(path, rows=10, dtype="float32", **columns):
    writer = FeatureWriter(path, HEADER, dtype)
    keys = columns.pop("keys", names(rows))
    append(writer, numbers(rows), labels(rows), keys, **columns)
    writer.finish()
    return path


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 700), max_size=5),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_rows_appended_in_any_batches_come_out_in_order(tmp_path_factory, sizes, dtype):
    path = tmp_path_factory.mktemp("store") / "f.h5"
    rows = sum(sizes)
    features, all_labels, keys = numbers(rows), labels(rows), names(rows)
    first = 0
    for size in sizes:  # each batch by a writer of its own, as after a kill
        writer = FeatureWriter(path, HEADER, dtype)
        assert writer.rows_done == first
        part = slice(first, first + size)
        append(writer, features[part], {k: v[part] for k, v in all_labels.items()}, keys[part])
        first += size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_writer, "COLUMN_ROWS", 300)
        FeatureWriter(path, HEADER, dtype).finish()
    with open_features(path) as store:
        expected = features.astype(dtype).astype(np.float32)
        assert store.header == HEADER
        assert store.keys == keys
        assert store.image_ids.tolist() == image_ids([key.encode() for key in keys]).tolist()
        assert store.views is None
        assert {k: v.tolist() for k, v in store.labels.items()} == {
            k: v.tolist() for k, v in all_labels.items()
        }
        if rows:
            np.testing.assert_array_equal(store.last(2), expected.reshape(rows, 6))
            np.testing.assert_array_equal(store.last(1), store.layer(-1))
            np.testing.assert_array_equal(store.layer(0), expected[:, 0])
    assert [p.name for p in path.parent.iterdir()] == ["f.h5"]


def test_equal_content_gives_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a.h5"), write(tmp_path / "b.h5")
    assert first.read_bytes() == second.read_bytes()


def test_any_hdf5_reader_finds_the_columns_of_the_contract(tmp_path):
    with h5py.File(write(tmp_path / "f.h5", dtype="float16")) as store:
        assert store["features"].shape == (10, 2, 3)
        assert store["features"].dtype == np.float16
        assert store["labels/class"].dtype == np.int64
        assert store["keys"].asstr()[0] == "häuser/000"
        assert store.attrs["complete"]


def test_several_views_of_an_image_share_its_key(tmp_path):
    views = np.repeat([0, 1], 5)
    path = write(tmp_path / "f.h5", keys=names(5) * 2, views=views)
    with open_features(path) as store:
        assert store.views.tolist() == views.tolist()
    with pytest.raises(IjepaError, match="häuser/000 more than once"):
        write(tmp_path / "g.h5", keys=names(5) * 2, views=np.zeros(10))


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
        found = store.read(np.array(rows, np.int64), layers)
    expected = numbers(1200).astype(np.float16)[rows, 2 - layers :]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected)


def test_a_changed_number_is_found_though_it_is_finite(tmp_path):
    path = write(tmp_path / "f.h5", rows=1200)
    damage(path, set_number(0.5))
    with pytest.raises(IjepaError, match=r"rows from 0 on are damaged"):
        open_features(path)
    with open_features(path, check_numbers=False) as store:
        assert store.read(np.array([3]), 2)[0, 0, 0] == 0.5


READ_ALL = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_features import *
store = open_features(Path({path!r}), check_numbers={check})
rows = np.random.default_rng(0).permutation(store.shape[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for some in np.array_split(rows, len(rows) // 256):
    store.read(some, 2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
@pytest.mark.parametrize("check", [False, True])
def test_reading_all_rows_takes_the_memory_of_one_batch(tmp_path, check):
    path, rows = tmp_path / "f.h5", 20_000
    wide = HEADER.model_copy(update={"class_names": {}})
    writer = FeatureWriter(path, wide, "float16")
    for first in range(0, rows, 2000):
        append(writer, np.ones((2000, 2, 1280), np.float16), {}, names(2000, first))
    writer.finish()
    assert path.stat().st_size > 100_000_000
    code = READ_ALL.format(tests=str(Path(__file__).parent), path=str(path), check=check)
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert int(found.stdout) < 20_000


WRITE_FOREVER = """
import sys, itertools
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_features import *
for number in itertools.count():
    writer = FeatureWriter(Path({path!r}), HEADER, "float16")
    append(writer, numbers(7, number), labels(7), names(7, 7 * number))
    if number == 3:
        print("go", flush=True)
"""


def test_a_writer_killed_at_any_moment_goes_on_where_it_was(tmp_path):
    path = tmp_path / "f.h5"
    code = WRITE_FOREVER.format(tests=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    writer = FeatureWriter(path, HEADER, "float16")
    batches, rest = divmod(writer.rows_done, 7)
    assert batches >= 4
    assert rest == 0
    append(writer, numbers(7, batches), labels(7), names(7, 7 * batches))
    writer.finish()
    with open_features(path) as store:
        expected = np.concatenate([numbers(7, number) for number in range(batches + 1)])
        np.testing.assert_array_equal(store.layer(1), expected[:, 1].astype(np.float16))
        assert store.keys == names(7 * (batches + 1))


def test_a_kill_while_or_after_assembling_costs_no_row(tmp_path, monkeypatch):
    path = tmp_path / "f.h5"
    writer = FeatureWriter(path, HEADER, "float32")
    append(writer, numbers(10), labels(10), names(10))
    for moment in ("os.fsync", "shutil.rmtree"):
        again = FeatureWriter(path, HEADER, "float32")
        with monkeypatch.context() as patch:
            patch.setattr(moment, _interrupt)
            with pytest.raises(KeyboardInterrupt):
                again.finish()
        again = FeatureWriter(path, HEADER, "float32")
        assert again.rows_done == 10
    again.finish()
    assert open_features(path).shape == (10, 2, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]


@pytest.mark.parametrize("lost", ["numbers", "end of the journal"])
def test_batches_that_a_power_failure_took_are_made_again(tmp_path, lost):
    path = tmp_path / "f.h5"
    writer = FeatureWriter(path, HEADER, "float32")
    for first in (0, 10):
        part = slice(first, first + 10)
        append(writer, numbers(20)[part], labels(10), names(10, first))
    if lost == "numbers":
        draft = path.with_name("f.h5.fp32.draft")
        os.truncate(draft, draft.stat().st_size - 1)
    else:
        [journal] = path.with_name("f.h5.fp32.journal").iterdir()
        os.truncate(journal, journal.stat().st_size - 2)
    again = FeatureWriter(path, HEADER, "float32")
    assert again.rows_done == 10
    assert (again.holds(0), again.holds(10)) == (True, False)
    append(again, numbers(20)[10:], labels(10), names(10, 10))
    again.finish()
    np.testing.assert_array_equal(open_features(path).layer(1), numbers(20)[:, 1])


def test_a_disk_that_fails_to_take_what_was_written_is_an_error_of_the_next_batch(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("ijepa.features.draft.SYNC_BYTES", 1)
    monkeypatch.setattr("os.fsync", _fail)
    writer = FeatureWriter(tmp_path / "f.h5", HEADER, "float32")
    with pytest.raises(OSError, match="the disk is broken"):
        _append_slowly(writer)
    monkeypatch.undo()  # mended, but what it lost is lost
    with pytest.raises(OSError, match="the disk is broken"):
        writer.finish()


def _append_slowly(writer):
    for first in range(0, 1000, 10):
        append(writer, numbers(10), labels(10), names(10, first))
        time.sleep(0.01)


def _fail(*_):
    raise OSError("the disk is broken")


def test_keys_of_any_length_and_script_come_back_as_they_were(tmp_path):
    path, keys = tmp_path / "f.h5", ["a", "ü" * 200, "図/1.jpg", ""]
    writer = FeatureWriter(path, HEADER, "float32")
    for place, key in enumerate(keys):
        append(writer, numbers(1, place), labels(1), [key])
    writer.finish()
    assert open_features(path).keys == keys


def _interrupt(*_, **__):
    raise KeyboardInterrupt


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_features import *
writer = FeatureWriter(Path({path!r}), HEADER, "float32")
append(writer, numbers(10), labels(10), names(10))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    writer.finish()
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="space is reserved on Linux only")
def test_too_little_space_is_a_clean_error_and_loses_nothing(tmp_path):
    path = tmp_path / "f.h5"
    code = FULL_DISK.format(tests=str(Path(__file__).parent), path=str(path))
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == errno.EFBIG
    assert not path.exists()
    assert FeatureWriter(path, HEADER, "float32").rows_done == 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_numbers_that_do_not_fit_are_refused_when_they_are_written(tmp_path, bad):
    features = numbers(10)
    features[4, 1, 2] = bad
    with pytest.raises(IjepaError, match="häuser/004 are not finite as float16"):
        append(FeatureWriter(tmp_path / "f.h5", HEADER, "float16"), features, labels(10), names(10))


def damage(path, how):
    with h5py.File(path, "r+") as store:
        how(store)


def shorten(name):
    def how(store):
        values = store[name][:-1]
        del store[name]
        store[name] = values

    return how


def set_number(value):
    def how(store):
        store["features"][3, 0, 0] = value

    return how


def repeat_key(store):
    store["keys"][1] = store["keys"][0]


def set_value(name, value):
    def how(store):
        store[name][0] = value

    return how


def reshape_numbers(store):
    values = store["features"][:]
    del store["features"]
    store["features"] = values.reshape(10, 3, 2)


def rename_encoder(store):
    store.attrs.modify("header", HEADER.model_copy(update={"encoder": "other"}).model_dump_json())


def drop(attribute):
    return lambda store: store.attrs.__delitem__(attribute)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (shorten("labels/class"), "holds 10 features but 9 labels/class"),
        (shorten("keys"), "holds 10 features but 9 keys"),
        (repeat_key, "holds key häuser/000 more than once"),
        (set_number(np.nan), "not finite, first for häuser/003"),
        (set_number(np.inf), "not finite, first for häuser/003"),
        (drop("complete"), "not a complete feature file"),
        (drop("schema"), "not a complete feature file"),
        (drop("header"), "not a whole feature file"),
        (lambda store: store.attrs.modify("header", "{}"), "header that this version"),
        (set_value("labels/class", 1), "not as it was written"),
        (set_value("keys", b"other"), "not as it was written"),
        (set_value("image_id", 7), "not as it was written"),
        (set_value("checksums", 7), "not as it was written"),
        (rename_encoder, "not as it was written"),
        (lambda store: store.attrs.modify("seal", "0" * 64), "not as it was written"),
        (reshape_numbers, "not as it was written"),
        (drop("seal"), "not a whole feature file"),
        (lambda store: store.__delitem__("features"), "not a whole feature file"),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_store_that_is_not_whole_and_sane_is_refused(tmp_path, how, message, dtype):
    path = write(tmp_path / "f.h5", dtype=dtype)
    damage(path, how)
    with pytest.raises(IjepaError, match=message) as error:
        open_features(path)
    assert "\n" not in str(error.value)


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "text.h5").write_text("features")
    (tmp_path / "empty.h5").touch()
    for name in ("text.h5", "empty.h5"):
        with pytest.raises(IjepaError, match="not a whole feature file"):
            open_features(tmp_path / name)
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
        expected, keys = store.last(2), store.keys
    with contextlib.suppress(IjepaError), open_features(path) as store:  # nothing but IjepaError
        assert not cut
        np.testing.assert_array_equal(store.last(2), expected)
        assert len(store.keys) == len(keys)
