"""Shards that are elsewhere: read as if they were here, shuffled, resumed, and never half read."""

import itertools
import json
import logging
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from gratings import write_gratings
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, write_files, write_tar
from runs import CPU, EAGER, StopError, changed, stop_at

from ijepa.config import DataConfig, ShardConfig
from ijepa.data import stream
from ijepa.data.loader import StepPlan, batches
from ijepa.data.shards import Sample, open_shards
from ijepa.data.stream import Lanes, StreamedCropBatches, open_remote, workers_for
from ijepa.errors import IjepaError
from ijepa.files import LAST, read_metrics
from ijepa.pretrain import plan_pretrain, pretrain
from ijepa.recipes import dump_yaml, load_recipe
from ijepa.shard import shard
from ijepa.stage import DryRun

DATA = DataConfig(image_px=16, batch_size=8)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A shard set of 120 images in eight shards."""
    folder = tmp_path_factory.mktemp("many")
    write_gratings(folder / "images", "train", 120, seed=3)
    shard(str(folder / "images"), folder / "set", ShardConfig(shard_bytes=100_000), CPU)
    assert len(open_shards(folder / "set").splits["train"].shards) == 8
    return folder / "set"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files; breaks off in the middle of those in `broken`, as often as is said there."""

    broken: ClassVar = Counter()

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        name = self.path.rpartition("/")[2]
        if self.broken[name] > 0:
            self.broken[name] -= 1
            outputfile.write(source.read(40_000))
            return
        super().copyfile(source, outputfile)


@contextmanager
def http_server(folder, context=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def http(many):
    with http_server(many.parent) as address:
        yield f"http://{address}/set"


@pytest.fixture(scope="module")
def s3(many):
    """The same set in a bucket of a server on this machine."""
    boto3 = pytest.importorskip("boto3")  # of extra dev alone
    pytest.importorskip("s3fs")  # of extra dev alone
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="data")
        for path in many.iterdir():
            client.upload_file(str(path), "data", f"sets/many/{path.name}")
        yield "s3://data/sets/many"
    server.stop()


@pytest.fixture
def at_once(monkeypatch):
    """No waiting before the next try."""
    monkeypatch.setattr(stream, "RETRY_SECONDS", (0, 0))


def every_sample(split):
    return [sample for number in range(len(split.urls)) for sample in split.read_shard(number)]


def every_image(folder):
    split = open_shards(folder).split("train")
    return [split.read_sample(number) for number in range(len(split))]


@pytest.mark.parametrize("kind", ["http", "s3", "pipe", "file"])
def test_samples_and_batches_are_the_same_wherever_the_shards_are_and_whoever_reads(
    kind, many, request
):
    here = {"pipe": f"pipe:cat {many}/{{}}", "file": f"file://{many}"}
    split = open_remote(here.get(kind) or request.getfixturevalue(kind), "train", None)
    assert len(split) == 120
    assert split.fingerprint == open_shards(many).fingerprint
    assert every_sample(split) == every_image(many)
    alone = streamed(split, range(20), workers=0)
    for workers in (1, 2) if kind in ("s3", "pipe") else ():
        assert_same_batches(alone, streamed(split, range(20), workers))


def streamed(split, steps, workers=0, lanes=4, buffer=20):
    plan = StepPlan(len(split), DATA, seed=0)
    dataset = StreamedCropBatches(Lanes(split, 0, buffer, range(lanes), lanes), plan, steps)
    return list(batches(dataset, None, workers))


def assert_same_batches(these, those):
    assert [batch.step for batch in these] == [batch.step for batch in those]
    assert [list(batch.keys) for batch in these] == [list(batch.keys) for batch in those]
    assert all(torch.equal(a.images, b.images) for a, b in zip(these, those, strict=True))


@pytest.mark.parametrize("start", [1, 7, 40])
def test_a_stream_taken_up_again_gives_what_it_would_have_given(start, many):
    split = open_remote(f"file://{many}", "train", None)
    assert_same_batches(streamed(split, range(50))[start:], streamed(split, range(start, 50)))


def test_one_shard_serves_more_lanes_and_workers_than_there_are_shards(shards):
    split = open_remote(f"file://{shards}", "val", None)
    assert len(split.urls) == 1
    read = streamed(split, range(24), workers=workers_for(8, 4), lanes=8, buffer=10)
    assert [batch.step for batch in read] == list(range(24))


class Numbered:
    """Shards of numbers instead of images, in memory."""

    def __init__(self, counts):
        self.counts, self.urls = tuple(counts), tuple(map(str, counts))

    def read_shard(self, number, skip=0):
        first = sum(self.counts[:number])
        for place in range(first + skip, first + self.counts[number]):
            yield Sample(str(place), b"", {})


SHARDS = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@given(SHARDS, st.integers(1, 30), st.integers(0, 100), st.integers(0, 5))
def test_one_lane_reads_each_image_once_an_epoch(counts, buffer, seed, epoch):
    total = sum(counts)
    lane = Lanes(Numbered(counts), seed, buffer, range(1), 1)
    read = itertools.islice(lane.samples(0, 0), (epoch + 1) * total + buffer)
    seen = Counter(sample.key for sample in read)
    assert len(seen) == total
    assert min(seen.values()) >= epoch + 1 if buffer == 1 else min(seen.values()) >= epoch


@given(SHARDS, st.integers(1, 5), st.integers(0, 100), st.integers(1, 3))
def test_lanes_of_all_processes_are_dealt_each_shard_once_an_epoch(counts, total, seed, epochs):
    lanes = Lanes(Numbered(counts), seed, 1, range(1), total)
    turns = range(epochs * len(counts) * total)  # whole epochs, whole rounds
    hands = [list(itertools.islice(lanes.shards(n), len(turns) // total)) for n in range(total)]
    dealt = [hands[turn % total][turn // total] for turn in turns]
    for first in turns[:: len(counts)]:
        assert sorted(dealt[first : first + len(counts)]) == list(range(len(counts)))


@given(SHARDS, st.integers(1, 9), st.integers(0, 80), st.integers(1, 3))
def test_a_lane_may_be_taken_up_anywhere(counts, buffer, first, total):
    lane = Lanes(Numbered(counts), 5, buffer, range(total), total)
    whole = itertools.islice(lane.samples(total - 1, 0), first, first + 30)
    rest = itertools.islice(lane.samples(total - 1, first), 30)
    assert [sample.key for sample in whole] == [sample.key for sample in rest]


@given(st.integers(1, 20), st.integers(0, 20))
def test_workers_share_lanes_evenly_and_are_no_more_than_asked(lanes, workers):
    count = workers_for(lanes, workers)
    assert count <= workers
    assert count == 0 if workers == 0 else lanes % count == 0


def test_a_broken_connection_is_taken_up_where_it_broke(many, http, at_once, caplog):
    split = open_remote(http, "train", None)
    Quiet.broken["train-000003.tar"] = 2
    assert every_sample(split) == every_image(many)
    assert caplog.text.count("train-000003.tar broke") == 2


def test_a_pipe_and_what_googles_library_raises_are_tried_again_too(many, at_once, monkeypatch):
    error = type("HttpError", (Exception,), {})
    library = SimpleNamespace(HttpError=error, ChecksumError=error)
    monkeypatch.setitem(sys.modules, "gcsfs.retry", library)
    split, opened = open_remote(f"pipe:cat {many}/{{}}", "train", None), stream._open
    errors = [error("503")]

    def broken_once(url):
        if errors:
            raise errors.pop()
        return opened(url)

    monkeypatch.setattr(stream, "_open", broken_once)
    assert list(split.read_shard(0)) == every_image(many)[: split.counts[0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_stays_broken_is_an_error_that_names_it(http, at_once, workers):
    split = open_remote(http, "train", None)
    Quiet.broken["train-000002.tar"] = 10_000
    try:
        with pytest.raises(IjepaError, match=r"train-000002\.tar cannot be read: [^\n]*\.$"):
            streamed(split, range(30), workers)
    finally:
        Quiet.broken.clear()


def test_a_shard_cut_short_where_it_lies_is_an_error_not_a_shorter_epoch(many, tmp_path, caplog):
    shutil.copytree(many, tmp_path, dirs_exist_ok=True)
    cut = tmp_path / "train-000001.tar"
    os.truncate(cut, cut.stat().st_size // 2 // 512 * 512)
    split = open_remote(f"file://{tmp_path}", "train", None)
    with pytest.raises(IjepaError, match=r"train-000001\.tar cannot be read"):
        list(split.read_shard(1))  # the next try would find it as it is
    assert "trying again" not in caplog.text


def test_a_shard_with_more_samples_than_its_index_says_is_an_error(many):
    split = open_remote(f"file://{many}", "train", None)
    too_few = tuple(count - 1 for count in split.counts)
    message = rf"train-000001\.tar holds more than the {too_few[1]} samples of its index\.$"
    with pytest.raises(IjepaError, match=message):
        list(replace(split, counts=too_few).read_shard(1))


def test_what_is_not_there_is_an_error_at_once(http, s3, many):
    missing = r"index\.json cannot be read: FileNotFoundError"
    for address, message in (
        (f"{http}/nothing", missing),
        (f"{s3}/nothing", missing),
        (f"file://{many}/train.parquet", "Shard sets can be streamed, by the address of their fo"),
        ("s3://no-such-bucket/set", missing),
        ("pipe:cat /nowhere/{}", r"index\.json"),
        ("pipe:echo [3]; true {}", "has schema None"),
        ("pipe:echo nonsense; true {}", r"index\.json cannot be read: JSONDecodeError"),
        (f"pipe:cat {many}", r"has no \{\} to put the names"),
        ("nonsense://host/set", r"[Pp]rotocol not known"),
    ):
        with pytest.raises(IjepaError, match=message):
            open_remote(address, "train", None)
    with pytest.raises(IjepaError, match=r"no split 'test'; its splits are train"):
        open_remote(http, "test", None)


@pytest.mark.parametrize(
    "name", ["{}; touch PWNED #", "$(touch PWNED)", "../many/{}", "/etc/passwd", "-rf", "a\nb", ""]
)
def test_a_name_in_an_index_that_is_no_plain_file_name_is_refused_and_never_run(
    many, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    index, folder = json.loads((many / "index.json").read_text()), tmp_path
    for facts in index["splits"]["train"]["shards"]:
        facts["name"] = name.replace("{}", facts["name"])
    (folder / "index.json").write_text(json.dumps(index))
    for data in (f"pipe:cat {folder}/{{}}", f"file://{folder}"):
        with pytest.raises(IjepaError, match=r"index\.json: .*file's name in an index[^\n]*$"):
            open_remote(data, "train", None).first_samples(1)
    with pytest.raises(IjepaError, match=r"index\.json: .*file's name in an index"):
        open_shards(folder)
    assert not (tmp_path / "PWNED").exists()
    index = json.loads((many / "index.json").read_text())
    index["splits"][f"../{name}"] = index["splits"]["train"]  # nor is the name of a split
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(IjepaError, match=r"file's name in an index"):
        open_shards(folder)


def test_without_credentials_the_error_says_so(s3, monkeypatch):
    import fsspec

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(IjepaError, match=r"cannot be read: (NoCredentials|Permission)Error"):
        open_remote(s3, "train", None)
    fsspec.filesystem("s3").clear_instance_cache()


def test_an_address_that_holds_tar_within_a_word_is_that_of_a_shard_set(many, tmp_path):
    folder = shutil.copytree(many, tmp_path / "data.target.org")
    assert len(open_remote(f"file://{folder}", "train", None)) == 120


def test_tars_without_an_index_need_their_number_of_images(many):
    tars = f"file://{many}/train-{{000000..000007}}.tar"
    with pytest.raises(IjepaError, match=r"--set stream\.epoch_images=N"):
        open_remote(tars, "train", None)
    split = open_remote(tars, "train", 120)
    assert len(split) == 120
    assert every_sample(split) == every_image(many)


def test_foreign_tars_are_read_by_their_image_members(tmp_path):
    files = {"a/1.cls": b"3", "a/1.JPG": encoded(1, "jpg"), "a/2.png": encoded(2), "a/2.txt": b"x"}
    write_tar(tmp_path / "foreign-0.tar", files | {"__notes__/x.png": b"", "no suffix": b""})
    write_tar(tmp_path / "foreign-1.tar", {"b/1.txt": b"no image"})
    write_tar(tmp_path / "foreign-2.tar", {"c.png": encoded(1), "c.PNG": encoded(2)})
    split = open_remote(f"file://{tmp_path}/foreign-{{0..2}}.tar", "train", 4)
    assert [sample.image for sample in split.read_shard(0)] == [files["a/1.JPG"], files["a/2.png"]]
    with pytest.raises(IjepaError, match=r"foreign-1\.tar: sample 'b/1' has no image \(txt\)"):
        list(split.read_shard(1))
    with pytest.raises(IjepaError, match=r"foreign-2\.tar: sample 'c' has two files of the same"):
        list(split.read_shard(2))


def test_a_member_chooses_an_image_of_streamed_samples_that_hold_several(tmp_path):
    files = {"1.left.png": encoded(1), "1.right.png": encoded(2), "2.LEFT.png": encoded(3)}
    address = f"file://{write_tar(tmp_path / 'stereo-0.tar', files)}"
    split = open_remote(address, "train", 2, "left.png")
    assert [sample.image for sample in split.read_shard(0)] == [encoded(1), encoded(3)]
    with pytest.raises(
        IjepaError, match=r"'1' has no image \(left\.png, right\.png\).*stream\.member"
    ):
        list(open_remote(address, "train", 2).read_shard(0))
    with pytest.raises(IjepaError, match=r"'1' has no image.*expected up\.png"):
        list(open_remote(address, "train", 2, "up.png").read_shard(0))
    write_tar(tmp_path / "two-0.tar", {"1.jpg": encoded(1, "jpg"), "1.png": encoded(2)})
    with pytest.raises(IjepaError, match=r"'1' has 2 images \(jpg, png\)"):
        list(open_remote(f"file://{tmp_path}/two-0.tar", "train", 1).read_shard(0))


def with_bad_samples(folder, good=40):
    """A tar of small gratings in which three samples have no image that decodes."""
    files = {}
    for number in range(good):
        files[f"{number:03d}.png"] = encoded(number, height=32, width=32)
        if number in (3, 17):
            files[f"{number:03d}.png"] = b"no image"
    files["999.txt"] = b"no image either"
    return f"file://{write_tar(folder / 'bad-0.tar', files)}"


def test_bad_samples_of_a_stream_are_replaced_and_named_whoever_reads_and_wherever_it_resumes(
    tmp_path,
):
    split = open_remote(with_bad_samples(tmp_path), "train", 41, max_bad=3)
    alone = streamed(split, range(12), lanes=2)
    assert {one.partition(":")[0] for batch in alone for one in batch.bad} == {"003", "017", "999"}
    assert all(len(batch.images) == len(batch.keys) == 8 for batch in alone)
    assert_same_batches(alone, streamed(split, range(12), workers=2, lanes=2))
    assert_same_batches(alone[5:], streamed(split, range(5, 12), lanes=2))
    assert not {"003", "017", "999"} & {sample.key for sample in split.first_samples(41)}
    for batch in alone:
        for one in batch.bad:  # another crop of an image of the batch, not an empty one
            assert batch.images[batch.keys.index(one.partition(":")[0])].float().std() > 10


def test_settings_of_a_stream_are_said_to_have_no_effect_on_a_set_that_is_here(
    many, streaming_config, tmp_path, caplog
):
    asked = ["stream.epoch_images=20", "stream.max_bad=9", "stream.member=right.jpg"]
    asked = changed(streaming_config, *asked)
    with pytest.raises(DryRun), caplog.at_level(logging.WARNING, "ijepa"):
        pretrain(many, tmp_path / "run", asked, CPU.model_copy(update={"dry_run": True}))
    for name in ("epoch_images", "max_bad", "member"):
        assert f"stream.{name} has no effect: {many} is not streamed" in caplog.text


def test_a_stream_without_an_image_is_one_line(streaming_config, tmp_path):
    path = write_tar(tmp_path / "x-0.tar", {f"{n}.left.jpg": encoded(n, "jpg") for n in range(20)})
    asked = ["stream.epoch_images=20", "stream.max_bad=99", "stream.member=right.jpg"]
    asked = changed(streaming_config, *asked)
    with pytest.raises(IjepaError, match=r"hold no image that decodes; see stream\.member"):
        pretrain(f"file://{path}", tmp_path / "run", asked, CPU)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tar, third: tar[:third], "no end mark, but empty header"),
        (lambda tar, third: tar[: third + 100], "no end mark, but truncated header"),
        (lambda tar, third: tar[:third] + b"\xff" + tar[third + 1 :], "no end mark, but bad check"),
    ],
)
def test_a_tar_without_an_index_that_ends_early_is_an_error_not_a_shorter_one(
    tmp_path, at_once, damage, message
):
    path = write_tar(tmp_path / "x-0.tar", {f"{n}.jpg": encoded(n, "jpg") for n in range(5)})
    split = open_remote(f"file://{path}", "train", 5)
    assert len(list(split.read_shard(0))) == 5
    third = 2 * (512 + 1024)  # where the third member begins
    path.write_bytes(damage(path.read_bytes(), third))
    found = []
    with pytest.raises(IjepaError, match=rf"x-0\.tar cannot be read: ReadError: {message}"):
        found.extend(split.read_shard(0))


def test_tars_without_samples_are_refused_instead_of_read_for_ever(tmp_path, caplog):
    write_tar(tmp_path / "empty-0.tar", {})
    split = open_remote(f"pipe:cat {tmp_path}/empty-{{0..0}}.tar", "train", 4)
    with pytest.raises(IjepaError, match=r"empty-0\.tar cannot be read: it holds no sample"):
        list(split.read_shard(0))
    assert "trying again" not in caplog.text


def test_a_shard_that_lost_all_of_its_images_is_passed_over(tmp_path):
    files = {"0.png": encoded(0), "1.png": b"", "2.png": encoded(2)}
    config = ShardConfig(shard_bytes=1, max_bad=1)
    shard(write_files(tmp_path / "images", files), tmp_path / "set", config, CPU)
    split = open_remote(f"file://{tmp_path}/set", "train", None)
    assert split.counts == (1, 0, 1)
    assert [sample.image for sample in split.first_samples(3)] == [encoded(0), encoded(2)]


@pytest.fixture(scope="module")
def streaming_config(tiny_config):
    return changed(tiny_config, "stream.buffer=16", "stream.lanes=2", "data.batch_size=16")


def test_a_label_that_a_stream_has_not_is_refused(many, streaming_config, tmp_path):
    config = changed(streaming_config, "watch.label=colour")
    with pytest.raises(IjepaError, match="has no label 'colour'; its labels are: class"):
        pretrain(f"file://{many}", tmp_path / "run", config, CPU)


@pytest.mark.slow
def test_a_run_replaces_as_many_bad_samples_as_it_may_and_says_so(
    tmp_path, streaming_config, caplog
):
    data, out = with_bad_samples(tmp_path), tmp_path / "run"
    settings = ["stream.epoch_images=41", "stream.max_bad=3", "watch.num_images=8"]
    config = changed(streaming_config, *settings)
    pretrain(data, out, config, CPU)
    record = json.loads((out / "stage.json").read_text())
    assert record["bad_samples"] == 2
    assert "2 samples have no image that decodes (003: not an image" in caplog.text
    assert pretrain(data, out, changed(config, "stream.max_bad=9"), CPU).cached
    assert load_recipe(str(out / "config.yaml")) == config
    few = changed(config, "stream.max_bad=1")
    with pytest.raises(IjepaError, match=r"2 samples have no image that decodes, 1 are allowed"):
        pretrain(data, tmp_path / "other", few, CPU)


@pytest.mark.slow
def test_a_run_on_s3_resumes_as_if_it_had_never_stopped(s3, streaming_config, tmp_path):
    whole = pretrain(s3, tmp_path / "whole", streaming_config, CPU)
    assert whole.steps == 2 * (120 // 16)
    with pytest.raises(StopError):
        pretrain(s3, tmp_path / "halves", streaming_config, EAGER, stop_at(96, "pretrain images"))
    pretrain(s3, tmp_path / "halves", streaming_config, CPU.model_copy(update={"workers": 2}))
    whole, halves = (tmp_path / name / "metrics.jsonl" for name in ("whole", "halves"))
    assert whole.read_bytes() == halves.read_bytes()
    assert "neighbour_accuracy" in read_metrics(whole)[0]


def test_a_broken_loss_names_the_images_of_the_stream(many, streaming_config, tmp_path):
    config = changed(streaming_config, "optimization.lr=1e9", "optimization.start_lr=1e9")
    with pytest.raises(IjepaError, match=r"\(images train/orientation\d/\d+, train/orientation"):
        pretrain(f"file://{many}", tmp_path / "run", config, CPU)


def test_a_run_on_tars_without_an_index_says_that_it_goes_on_about_there(
    many, streaming_config, tmp_path, caplog
):
    def stop(*_):
        if (tmp_path / "run.partial" / LAST).exists():
            raise StopError

    tars = f"pipe:cat {many}/train-{{000000..000007}}.tar"
    config = changed(streaming_config, "stream.epoch_images=120")
    assert plan_pretrain(tars, config, CPU).images == 120
    with pytest.raises(StopError):
        pretrain(tars, tmp_path / "run", config, EAGER, stop)
    pretrain(tars, tmp_path / "run", config, CPU)
    assert "about where they stopped" in caplog.text


def test_a_cache_of_decoded_images_needs_them_here(many, streaming_config, tmp_path):
    runtime = CPU.model_copy(update={"cache": "decoded"})
    with pytest.raises(IjepaError, match="--cache decoded needs a shard set on this machine"):
        pretrain(f"file://{many}", tmp_path / "run", streaming_config, runtime)


@pytest.mark.slow
def test_https_is_trusted_by_its_certificate_only(many, streaming_config, tmp_path):
    trustme = pytest.importorskip("trustme")  # of extra dev alone
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "recipe.yaml").write_text(dump_yaml(streaming_config))
    with http_server(many.parent, context) as address:
        command = [sys.executable, "-m", "ijepa_cli", "pretrain", "--json", "--workers", "2"]
        command += ["--recipe", str(tmp_path / "recipe.yaml"), "--device", "cpu"]
        command += ["--data", f"https://{address}/set"]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "run")],
            env=os.environ | {"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        with pytest.raises(IjepaError, match="certificate verify failed"):
            open_remote(f"https://{address}/set", "train", None)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 14


@pytest.mark.parametrize(
    "beside",
    [b"[3, 5]", b"null", b"no JSON", b"\xff", b'{"labels": 3}', b'{"labels": {"class": "dog"}}',
     b'{"key": 7}', b"[" * 100_000],
)  # fmt: skip
def test_json_of_others_beside_images_is_ignored_where_no_labels_are_needed(
    many, streaming_config, tmp_path, beside
):
    images = {f"{n:03d}.png": encoded(n, height=24, width=24) for n in range(32)}
    notes = {f"{n:03d}.json": beside for n in range(32)}
    write_tar(tmp_path / "a.tar", dict(sorted((images | notes).items())))
    config = changed(streaming_config, "stream.epoch_images=32", "optimization.epochs=1")
    assert pretrain(f"file://{tmp_path}/a.tar", tmp_path / "run", config, CPU).steps == 2


def test_labels_that_an_index_promises_are_missed_with_tar_and_key(many, tmp_path):
    shutil.copytree(many, tmp_path / "set")
    write_tar(tmp_path / "set" / "train-000000.tar", {"k.png": encoded(1), "k.json": b"[3, 5]"})
    split = open_remote(f"file://{tmp_path}/set", "train", None)
    with pytest.raises(IjepaError, match=r"train-000000\.tar: the \.json of sample 'k' has no"):
        next(split.read_shard(0))
