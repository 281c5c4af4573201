"""Neighbours, retrieved patches and maps: the right points, and pages that load nothing."""

import html
import json
import re
import shutil

import h5py
import numpy as np
import pytest
from pictures import encoded, write_files
from PIL import Image
from runs import CPU
from test_page_in_browser import NEEDS_CHROMIUM, browse

from ijepa.config import EmbeddingConfig, ExtractConfig, NeighborsConfig, RetrievalConfig, Runtime
from ijepa.data.shards import open_shards
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.features.store import open_features
from ijepa.records import read_record
from ijepa.shard import shard
from ijepa.visualize import features as maps
from ijepa.visualize import predictions, visualize
from ijepa.visualize.features import nearest
from ijepa.visualize.predictions import MEAN, PREDICTED, RANDOM, TRUE


@pytest.fixture(scope="module")
def features(shards, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "val.h5"
    extract(shards, out, ExtractConfig(encoder=str(run), split="val"), CPU)
    return out


def test_the_nearest_are_those_of_a_plain_search_without_the_query_itself():
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    vectors[13] = 3 * vectors[4]  # length does not count
    own = np.arange(3, 10)
    cosine, numbers = nearest(vectors[own], vectors, 5, own)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = unit[own] @ unit.T
    expected[np.arange(7), own] = -np.inf
    np.testing.assert_array_equal(numbers, np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(cosine, -np.sort(-expected, axis=1)[:, :5], atol=1e-6)
    assert numbers[1, 0] == 13
    assert nearest(np.eye(2), np.eye(2), 4, np.arange(2))[1].tolist() == [[1], [0]]


def test_neighbours_are_drawn_once_and_to_the_byte(features, shards, tmp_path):
    out, config = tmp_path / "n.png", NeighborsConfig(queries=3, neighbors=4)
    first = visualize(out, config, shards, [features], CPU)
    again = visualize(out, config, shards, [features], CPU)
    assert (first.cached, again.cached, first.images) == (False, True, 3)
    assert again.figures == first.figures
    before = out.read_bytes()
    visualize(out, config, shards, [features], Runtime(device="cpu", force=True))
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"label": "colour"}, "no label 'colour'"),
        ({"layer": 7}, "stores 2 layers, 0 to 1, not 7"),
        ({"keys": ("nobody",)}, "no image 'nobody'"),
    ],
)
def test_neighbours_that_cannot_be_found_leave_no_picture(features, tmp_path, choices, message):
    with pytest.raises(IjepaError, match=message):
        visualize(tmp_path / "n.png", NeighborsConfig(**choices), None, [features])
    assert not list(tmp_path.iterdir())


def test_damaged_features_are_not_drawn(features, tmp_path):
    shutil.copy(features, tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["features"][3] += 1
    with pytest.raises(IjepaError, match=r"f\.h5 .*damaged"):
        visualize(tmp_path / "n.png", NeighborsConfig(), None, [tmp_path / "f.h5"])


def test_as_many_queries_are_drawn_as_leave_another_image(features, tmp_path):
    config = NeighborsConfig(queries=64, neighbors=1)
    assert visualize(tmp_path / "n.png", config, None, [features]).images == 63


def test_patches_come_apart_and_together_again():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    patches = predictions.cut_patches(image[np.newaxis], 4)
    assert patches.shape == (6, 4, 4, 3)
    np.testing.assert_array_equal(patches[4], image[4:, 4:8])
    whole = predictions.with_patches(np.zeros_like(image), np.arange(6), patches)
    np.testing.assert_array_equal(whole, image)


def test_the_outline_of_a_block_goes_once_around_it():
    assert len(predictions.outline(np.array([5, 6, 9, 10]), (4, 4))) == 8
    assert len(predictions.outline(np.array([0, 5]), (4, 4))) == 8  # touching at a corner only


def store_and_asked(own_images: bool) -> tuple[np.ndarray, np.ndarray, predictions.Query]:
    """Three images of 2x2 patches in the store; two of them, or two others, are asked about."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    tokens = rng.normal(size=(5, 4, 16)).astype(np.float32)
    asked = slice(0, 2) if own_images else slice(3, 5)
    blocks = np.array([[0, 1], [2, 3]])
    true = np.take_along_axis(tokens[asked], blocks[..., np.newaxis], axis=1)
    patches = predictions.cut_patches(pixels[:3], 4)
    return (
        tokens[:3],
        patches,
        predictions.Query(pixels[asked], [np.arange(2)] * 2, blocks, true, true),
    )


def test_predictions_that_are_the_true_tokens_of_a_stored_image_bring_back_its_very_patches():
    tokens, patches, asked = store_and_asked(own_images=True)
    filled = predictions.fill_blocks(asked, tokens, patches, np.random.default_rng(0))
    real = np.stack(
        [predictions.cut_patches(asked.pixels[n][np.newaxis], 4)[asked.blocks[n]] for n in (0, 1)]
    )
    np.testing.assert_array_equal(filled[PREDICTED].patches, real)
    assert filled[PREDICTED].difference == 0
    assert filled[PREDICTED].cosine == pytest.approx(1)
    assert filled[RANDOM].difference > 0


def test_the_mean_at_a_place_is_blind_to_the_image():
    tokens, patches, asked = store_and_asked(own_images=False)
    same_block = asked._replace(blocks=np.array([[0, 1], [0, 1]]))
    filled = predictions.fill_blocks(same_block, tokens, patches, np.random.default_rng(0))
    np.testing.assert_array_equal(filled[MEAN].patches[0], filled[MEAN].patches[1])
    nearest = predictions.nearest_patches(tokens[:, :2].mean(axis=0), tokens.reshape(12, 16))
    np.testing.assert_array_equal(filled[MEAN].patches[0], patches[nearest])


def test_true_tokens_of_a_run_retrieve_better_than_chance(run, shards, tmp_path):
    names = (str(run), f"random:{run}")
    config = RetrievalConfig(encoder=names, images=2, measured=16, store_images=64)
    out = tmp_path / "r.png"
    picture = visualize(out, config, shards, runtime=CPU)
    assert len(picture.figures) == 2 * 2 * 4
    difference = {way: picture.figures[f"difference of {way}, {run}"] for way in (TRUE, RANDOM)}
    assert difference[TRUE] < difference[RANDOM]
    assert picture.figures[f"cosine of {TRUE}, {run}"] == pytest.approx(1)
    assert visualize(out, config, shards, runtime=CPU).cached
    assert Image.open(out).width > 800


@pytest.mark.parametrize("encoder", ["random:vit_tiny/16@32", "pixels"])
def test_what_has_no_predictor_is_refused_a_retrieval(shards, tmp_path, encoder):
    config = RetrievalConfig(encoder=(encoder,), measured=16, store_images=9)
    with pytest.raises(IjepaError, match="has no predictor"):
        visualize(tmp_path / "r.png", config, shards, runtime=CPU)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("split", "stored"), [("train", 256), ("val", 32), ("evaluation", 32)])
@pytest.mark.parametrize("choices", [{}, {"measured": 1000, "store_images": 1000}])
def test_a_retrieval_takes_as_many_images_as_there_are(
    run, shards, tmp_path, split, stored, choices
):
    out = tmp_path / "r.png"
    config = RetrievalConfig(encoder=(str(run),), images=2, store_split=split, **choices)
    visualize(out, config, shards, runtime=CPU)
    assert read_record(out)["config"]["store_images"] == stored


def test_a_retrieval_of_all_images_from_themselves_is_refused(run, shards, tmp_path):
    keys = tuple(open_shards(shards).split("val").keys())
    config = RetrievalConfig(encoder=(str(run),), keys=keys, store_split="val")
    with pytest.raises(IjepaError, match="No image of split val is left to take patches from"):
        visualize(tmp_path / "r.png", config, shards, runtime=CPU)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_projection_keeps_groups_apart_and_repeats_itself(method):
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 20)
    features = rng.normal(size=(40, 6)) + 30 * group[:, np.newaxis]
    places = maps.project(features, method, seed=0)
    assert places.min() == 0
    assert places.max() == pytest.approx(1)
    middles = np.stack([places[group == g].mean(axis=0) for g in (0, 1)])
    spread = max(places[group == g].std(axis=0).max() for g in (0, 1))
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * spread
    np.testing.assert_array_equal(maps.project(features, method, seed=0), places)


def test_few_images_have_the_perplexity_that_they_allow(features, tmp_path):
    visualize(tmp_path / "a.html", EmbeddingConfig(images=16), features=[features], runtime=CPU)
    assert "t-SNE, perplexity 5, seed 0; 16 of" in (tmp_path / "a.html").read_text()


def test_a_legend_counts_classes_and_gathers_the_rarest():
    names = [f"class {n:02d}" for n in range(maps.MOST_CLASSES + 5) for _ in range(60 - n)]
    groups, of_points = maps.legend_of(names)
    assert len(groups) == maps.MOST_CLASSES
    assert groups[-1].name == maps.OTHER
    assert [of_points.count(place) for place in range(len(groups))] == [g.size for g in groups]
    assert len({(group.colour, group.shape) for group in groups}) == maps.MOST_CLASSES


def test_thumbnails_do_not_overlap():
    places = np.random.default_rng(0).random((200, 2))
    chosen = places[maps.apart(places, 0.2)]
    apart_by = np.abs(chosen[:, np.newaxis] - chosen).max(axis=2)
    assert apart_by[~np.eye(len(chosen), dtype=bool)].min() >= 0.2


def test_an_embedding_page_holds_every_point_and_loads_nothing(features, shards, tmp_path):
    out, config = tmp_path / "e.html", EmbeddingConfig(method="pca")
    picture = visualize(out, config, shards, [features], CPU)
    text = out.read_text()
    assert picture.images == 64
    assert text.count("<use ", 0, text.index('id="ring"')) == 64
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert sorted(data["keys"]) == sorted(open_features(features).keys)
    assert len(data["points"]) == len(data["of"]) == 64
    assert "://" not in text.replace("data:image", "")
    assert "block 1" in text
    assert "split val" in text
    before = out.read_bytes()
    visualize(out, config, shards, [features], Runtime(device="cpu", force=True))
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("nasty", "shown"),
    [
        ("</script><script>alert(1)</script>", html.escape("</script><script>alert(1)</script>")),
        ("\x1b[31mred\x9b\u202e", r"\u001b[31mred\u009b\u202e"),
    ],
)
def test_names_are_shown_and_never_obeyed_by_a_browser_or_who_reads_the_file(nasty, shown):
    text = maps.embedding_page(np.eye(3, 2), [nasty] * 3, (), [nasty], [nasty] * 3)
    assert nasty not in text
    assert not set("\x1b\x9b\u202e") & set(text)
    assert shown in text


def test_still_maps_are_png_or_svg_and_nothing_else(features, shards, tmp_path):
    config = EmbeddingConfig(method="pca", images=20)
    for suffix in ("png", "svg"):
        visualize(tmp_path / f"e.{suffix}", config, shards, [features], CPU)
    assert Image.open(tmp_path / "e.png").width > 900
    assert (tmp_path / "e.svg").read_text().count("<use ") >= 20
    with pytest.raises(IjepaError, match=r"must end in \.html or \.png or \.svg"):
        visualize(tmp_path / "e.jpg", config, shards, [features], CPU)


def test_images_of_another_shard_set_are_refused(features, shards, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    index = json.loads((other / "index.json").read_text())
    (other / "index.json").write_text(json.dumps(index | {"fingerprint": "0" * 64}))
    (other / "stage.json").unlink()  # which knows what the index was
    pixels = ExtractConfig(encoder="pixels", image_px=8, split="val")
    extract(other, tmp_path / "other.h5", pixels, CPU)
    for data, files in ((other, [features]), (shards, [features, tmp_path / "other.h5"])):
        with pytest.raises(IjepaError, match="was not extracted from"):
            visualize(tmp_path / "n.png", NeighborsConfig(), data, files, CPU)


def test_no_share_is_told_of_neighbours_whose_class_is_not_known(tmp_path):
    write_files(tmp_path, {f"{n}.png": encoded(n) for n in range(4)})
    listed = "\n".join(["path,split,class", *(f"{n}.png,val," for n in range(4))])
    (tmp_path / "list.csv").write_text(listed)
    shard(tmp_path / "list.csv", tmp_path / "set")
    pixels = ExtractConfig(encoder="pixels", image_px=8, split="val")
    extract(tmp_path / "set", tmp_path / "val.h5", pixels, CPU)
    config = NeighborsConfig(queries=2, label="class")
    assert visualize(tmp_path / "n.png", config, None, [tmp_path / "val.h5"], CPU).figures == {}


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_the_page_works_in_a_browser_without_errors(features, shards, tmp_path):
    out = tmp_path / "e.html"
    visualize(out, EmbeddingConfig(method="pca"), shards, [features], CPU)
    walk = """<script>
    for (const key of ["ArrowUp", "ArrowLeft", "ArrowDown"])
      map.dispatchEvent(new KeyboardEvent("keydown", {key}));
    document.querySelector("[data-class]").click();
    document.body.dataset.walked = words.textContent + "|" + thumb.hidden;
    </script></body>"""
    out.write_text(out.read_text().replace("</body>", walk))
    text, complaints = browse(out, tmp_path / "profile", "--virtual-time-budget=2000", "--dump-dom")
    assert complaints == []
    walked, hidden = re.search(r'data-walked="(.*?)\|(.*?)"', text).groups()
    assert any(key in html.unescape(walked) for key in open_features(features).keys)
    assert hidden == "false"
    assert 'class="hidden"' in text
