"""What the page shows of a run: its curves, and what its masks come to."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from ijepa.config import PretrainConfig
from ijepa.figures.chart import Series, line_chart
from ijepa.results.embed import png_uri

Records = Sequence[dict[str, float]]

MASK_IMAGES = 2000  # over which the masks of a run are counted

CURVES = (  # fields of a record, label of the axis, what the reader should know
    (("loss",), "loss", "Of pretraining it does not show progress: targets move, too."),
    (("held_out_loss",), "held-out loss", "On images not trained on; labels not smoothed."),
    (("held_out_accuracy",), "held-out accuracy", "On images not trained on, nor chosen by."),
    (("rankme",), "RankMe", "Effective dimensions of the target encoder's pooled features."),
    (
        ("mean_cosine", "feature_std"),
        "mean cosine, feature std",
        "Collapse: cosine between images goes to 1, standard deviation to 0.",
    ),
    (
        ("loss_vs_mean_target",),
        "loss / loss of the mean target",
        "1 is no better than always predicting the mean target.",
    ),
    (("lidar",), "LiDAR", "Effective dimensions that tell images apart, whatever their context."),
    (
        ("neighbour_accuracy",),
        "accuracy of nearest neighbours",
        "By labels that the training never sees, on the few images of the watch.",
    ),
    (("lr",), "learning rate", "As used at each step."),
    (("weight_decay",), "weight decay", "As used at each step; none on biases and norms."),
    (("ema",), "EMA momentum", "Of the target encoder."),
    (("grad_norm",), "gradient norm", "Of all trained parameters together."),
    (
        ("context_patches", "target_patches"),
        "patches",
        "Seen by the context encoder, and in each target block.",
    ),
)


class Chart(NamedTuple):
    """A picture and what to see in it."""

    picture: Markup
    caption: str


class HeatMap(NamedTuple):
    """How often each patch is seen: a data address of a PNG, one pixel a patch, and in numbers."""

    address: str
    caption: str


class MaskView(NamedTuple):
    """A run's masks: in a sentence, and as maps of the context and of the targets."""

    summary: str
    maps: tuple[HeatMap, ...]


class RunView(NamedTuple):
    """What the page shows of a run; `masks` is None where no pretraining has any."""

    name: str
    summary: str
    charts: list[Chart]
    masks: MaskView | None
    config: str
    command: str


def run_charts(records: Records) -> list[Chart]:
    """The curves of a run's `metrics.jsonl`, over images seen."""
    charts = []
    for fields, label, caption in CURVES:
        series = [_series(records, field) for field in fields]
        if all(line.x for line in series):
            charts.append(Chart(line_chart(series, "images seen", label), caption))
    return charts


def mask_view(config: PretrainConfig) -> MaskView:
    """What the masks of a configuration come to, over its first batches."""
    from ijepa.figures.mask_sheet import heat_map
    from ijepa.jepa.masks import mask_statistics

    batches = max(1, MASK_IMAGES // config.data.batch_size)
    found, (rows, columns) = mask_statistics(config, batches), config.grid
    patches = rows * columns
    summary = (
        f"{config.masks.kind}, draw {config.masks.draw}, {rows}x{columns} patches: contexts of "
        f"{found.context_patches:.1f} patches ({found.context_patches / patches:.3f} of all), "
        f"target blocks of {found.target_patches:.1f} ({found.target_patches / patches:.3f}); "
        f"{found.target_seen.mean():.3f} of all patches are in a target. First {batches:,} "
        f"batches of {config.data.batch_size:,}, seed {config.seed}."
    )
    named = {"in the context": found.context_seen, "in a target": found.target_seen}
    maps = (
        HeatMap(
            png_uri(heat_map(share)),
            f"Share of images in which a patch is {name}: {share.min():.2f} (white) to "
            f"{share.max():.2f} (dark), mean {share.mean():.2f}.",
        )
        for name, share in named.items()
    )
    return MaskView(summary, tuple(maps))


def _series(records: Records, field: str) -> Series:
    points = [(record.get("images", 0.0), record[field]) for record in records if field in record]
    name = field.replace("_", " ")
    return Series(name, [x for x, _ in points], [y for _, y in points])
