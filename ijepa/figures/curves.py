"""The curves of a run: its loss, its health, its schedules, over images seen."""

from collections.abc import Sequence

from markupsafe import Markup

from ijepa.figures.chart import Series, line_chart

Records = Sequence[dict[str, float]]

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


def run_curves(records: Records) -> list[tuple[Markup, str]]:
    """Charts of a run's `metrics.jsonl` as SVG, each with what to see in it."""
    charts = []
    for fields, label, caption in CURVES:
        series = [_series(records, field) for field in fields]
        if all(line.x for line in series):
            charts.append((line_chart(series, "images seen", label), caption))
    return charts


def _series(records: Records, field: str) -> Series:
    points = [(record.get("images", 0.0), record[field]) for record in records if field in record]
    name = field.replace("_", " ")
    return Series(name, [x for x, _ in points], [y for _, y in points])
