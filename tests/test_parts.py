"""Parts of a shard set, written apart and merged, are the set that one command writes."""

import shutil

import pytest
from pictures import class_folders, digests, encoded, write_files
from runs import CPU, StopError, stop_at

from ijepa.config import ShardConfig
from ijepa.data import plan as plans
from ijepa.data.index import check_shards
from ijepa.data.shards import open_shards
from ijepa.errors import IjepaError
from ijepa.shard import shard

SMALL = {"shard_bytes": 10_000}  # three images a shard


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("images"), class_folders(8))


def write(images, out, *numbers, count, **settings):
    for number in numbers:
        config = ShardConfig(**SMALL | settings, part=f"{number}/{count}")
        yield shard(images, out, config, CPU)


def merged(images, out, **settings):
    return shard(images, out, ShardConfig(**SMALL | settings, merge=True), CPU)


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("shuffle", [False, True])
def test_merged_parts_are_the_set_that_one_command_writes(images, tmp_path, count, shuffle):
    whole = shard(images, tmp_path / "whole", ShardConfig(**SMALL, shuffle=shuffle), CPU)
    out, order = tmp_path / "set", reversed(range(1, count + 1))  # tasks end in any order
    written = list(write(images, out, *order, count=count, shuffle=shuffle))
    assert sum(part.shards for part in written) == whole.shards
    assert all(part.shards for part in written)
    assert sum(sum(part.splits.values()) for part in written) == 32
    result = merged(images, out, shuffle=shuffle)
    assert result.model_copy(update={"out": whole.out}) == whole
    assert digests(out) == digests(tmp_path / "whole")
    check_shards(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]
    assert merged(images, out, shuffle=shuffle).cached
    assert shard(images, out, ShardConfig(**SMALL, shuffle=shuffle), CPU).cached


def test_rows_of_shuffled_tables_are_merged_likewise(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")  # of extras parquet and dev
    parquet = pytest.importorskip("pyarrow.parquet")  # likewise
    table = pa.table(
        {"image": [encoded(n) for n in range(24)], "label": [n % 3 for n in range(24)]}
    )
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=5)
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(95, "no links")))
    list(write(tmp_path / "t.parquet", tmp_path / "set", 1, 2, count=2, shuffle=True))
    merged(tmp_path / "t.parquet", tmp_path / "set", shuffle=True)
    config = ShardConfig(**SMALL, shuffle=True)
    shard(tmp_path / "t.parquet", tmp_path / "whole", config, CPU)
    assert digests(tmp_path / "set") == digests(tmp_path / "whole")


def test_parts_that_are_missing_or_of_another_set_are_refused_in_one_line(images, tmp_path):
    out = tmp_path / "set"

    def refused(message, **settings):
        with pytest.raises(IjepaError, match=message) as error:
            merged(images, out, **settings)
        assert "\n" not in str(error.value)
        assert not out.exists()

    refused("There are no parts of .*set to merge. .* --part 1/N, 2/N, ... in place of --merge")
    list(write(images, out, 1, 3, count=4))
    refused("parts 2, 4 of 4 are missing; run the same command with --part 2/4")
    refused(r"part-1-of-4 is no part of this set: max_pixels was .*, now 9", max_pixels=9)
    list(write(images, out, 2, 4, count=4))
    tar = next((tmp_path / "set.part-2-of-4").glob("*.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1])
    refused(r"part-2-of-4 is no part of this set: a file of it was changed\. Give the options")
    shutil.rmtree(tmp_path / "set.part-2-of-4")
    list(write(images, out, 2, count=4))
    list(write(images, out, 1, count=2))
    refused("parts of several divisions, into 2, 4")
    shutil.rmtree(tmp_path / "set.part-1-of-2")
    assert merged(images, out).splits == {"train": 16, "val": 16}
    with pytest.raises(IjepaError, match="99 parts are more than the set has shards, 12"):
        list(write(images, tmp_path / "other", 1, count=99))


def test_a_part_goes_on_where_it_stopped_and_a_merge_links_again(images, tmp_path, monkeypatch):
    out = tmp_path / "set"
    with pytest.raises(StopError):
        shard(images, out, ShardConfig(**SMALL, part="1/2"), CPU, stop_at(6, "shard images"))
    partial = tmp_path / "set.part-1-of-2.partial"
    finished = [partial / path.stem for path in partial.glob("*.tar.json")]
    written = {path.name: path.stat().st_mtime_ns for path in finished}
    assert written
    (part,) = write(images, out, 1, count=2)
    assert not part.cached
    assert {name: (part.out / name).stat().st_mtime_ns for name in written} == written
    assert [one.cached for one in write(images, out, 1, 2, count=2)] == [True, False]
    with monkeypatch.context() as patch:
        patch.setattr(plans, "sibling", lambda *_: (_ for _ in ()).throw(StopError))
        with pytest.raises(StopError):
            merged(images, out)
    assert merged(images, out).shards == 12


def test_bad_images_are_counted_over_all_parts(tmp_path):
    files = class_folders(8) | {"train/cat/0000.png": b"bad", "val/dog/0007.png": b"worse"}
    images, out = write_files(tmp_path / "images", files), tmp_path / "set"
    with pytest.raises(IjepaError, match="--max-bad"):
        list(write(images, out, 1, count=2))
    parts = list(write(images, out, 1, 2, count=2, max_bad=1))
    assert [part.bad for part in parts] == [1, 1]
    with pytest.raises(IjepaError, match="At least 2 images do not decode, 1 are allowed"):
        merged(images, out, max_bad=1)
    assert merged(images, out, max_bad=2).bad == 2
    assert len((out / "bad.jsonl").read_text().splitlines()) == 2
    assert len(open_shards(out).split("val")) == 15
