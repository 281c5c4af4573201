"""Whoever calls the library names files as text, as `Path`, or as any other path-like object."""

import pytest
from runs import CPU

import ijepa
from ijepa.config import (
    ConvertConfig,
    ExtractConfig,
    FinetuneConfig,
    MasksConfig,
    NeighborsConfig,
    ProbeConfig,
    ShardConfig,
)
from ijepa.convert import convert
from ijepa.errors import IjepaError
from ijepa.extract import check_features, describe, extract
from ijepa.features.diagnose import diagnose
from ijepa.finetune import plan_finetune
from ijepa.pretrain import plan_pretrain, pretrain
from ijepa.probe import probe
from ijepa.recipes import load_recipe
from ijepa.report import report
from ijepa.results.compare import compare
from ijepa.results.record import read_result
from ijepa.shard import shard
from ijepa.visualize import visualize


class OsPath:
    """Neither text nor a `Path`."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __fspath__(self) -> str:
        return self._text


@pytest.mark.parametrize("kind", [str, OsPath])
def test_every_stage_takes_paths_of_any_kind(kind, shards, run, tiny_config, tmp_path):
    def at(name):
        return kind(str(tmp_path / name))

    data, images = kind(str(shards)), kind(str(shards.parent / "images"))
    assert shard(images, at("set"), ShardConfig(), CPU).bytes
    assert len(ijepa.open_shards(data).split("val")) == 64
    for split in ("train", "val"):
        config = ExtractConfig(encoder="pixels", image_px=8, split=split)
        extract(data, at(f"{split}.h5"), config, CPU)
    with ijepa.open_features(at("val.h5")) as store:
        assert store.shape[0] == 64
    assert describe(at("val.h5")).images == diagnose(at("val.h5")).images == 64
    check_features(at("val.h5"), data)
    probe((at("train.h5"), at("val.h5")), [], at("r.json"), ProbeConfig(name="knn"), CPU)
    assert compare(at("r.json"), at("r.json"))
    assert read_result(at("r.json"))[0].test_rows == 64
    assert pretrain(data, kind(str(run)), tiny_config, CPU).cached
    with pytest.raises(IjepaError, match="no weights"):
        pretrain(data, at("new"), tiny_config, CPU, init=at("nowhere"))
    assert plan_pretrain(data, tiny_config, CPU).images == 256
    assert ijepa.load_encoder(kind(str(run))).num_layers == 2
    assert load_recipe(kind(str(run / "config.yaml"))) == tiny_config
    finetuning = FinetuneConfig(encoder=str(run), batch_size=8)
    assert plan_finetune(data, finetuning).train_images == 256
    convert(kind(str(run)), at("c.pth.tar"), ConvertConfig(to="published"), CPU)
    assert report([at("r.json"), kind(str(run))], at("r.html")).results
    config = MasksConfig(recipe=tiny_config, batches=2)
    assert visualize(at("m.png"), config, data).out.is_file()
    assert visualize(at("n.png"), NeighborsConfig(), data, [at("val.h5")]).out.is_file()
