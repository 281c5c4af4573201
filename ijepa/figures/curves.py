"""The curves of a run: its loss, its health, its schedules, over images seen."""

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from ijepa.figures.draw import COLOURS, INK, PER_INCH, SOFT, encoded, style

Records = Sequence[dict[str, float]]
Points = tuple[list[float], list[float]]  # x ascending, y

WIDTH_PX, HEIGHT_PX = 460, 240
MOST_POINTS = 400  # more than the chart has pixels to show
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
    """Charts of a run's `metrics.jsonl` as SVG for a page, each with what to see in it."""
    charts = []
    for fields, label, caption in CURVES:
        series: dict[str, Points] = {}
        for field in fields:
            there = [record for record in records if field in record]
            images, values = ([one.get(name, 0.0) for one in there] for name in ("images", field))
            series[field.replace("_", " ")] = images, values
        if all(x for x, _ in series.values()):
            charts.append((line_chart(series, "images seen", label), caption))
    return charts


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str) -> Markup:
    """Draw lines over a common grid as an SVG element in the colours of the page around it.

    Each has a point at least; their names are shown if there are several.
    """
    with style():
        figure = Figure(figsize=(WIDTH_PX / PER_INCH, HEIGHT_PX / PER_INCH), facecolor="none")
        axes = figure.add_axes((0.15, 0.19, 0.82, 0.70))
        for (name, (x, y)), colour in zip(series.items(), COLOURS, strict=False):
            every = -(-len(x) // MOST_POINTS)
            marker = "." if len(x) == 1 else ""
            points = x[::every] + x[-1:], y[::every] + y[-1:]
            axes.plot(*points, color=colour, linewidth=1.8, label=name, marker=marker)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(color=SOFT[0], alpha=0.25, linewidth=0.8)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if len(series) > 1:
            axes.legend(
                frameon=False, loc="lower left", bbox_to_anchor=(0, 0.98), ncols=len(series)
            )
        text = encoded(figure, ".svg").decode()
    # A page has ids, styles and colours of its own; nothing in it may look like an address.
    size = f'viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="{escape(y_label)}"'
    text = re.sub(r".*?<svg [^>]*>", f"<svg {size}>", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<(metadata|style|clipPath).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' clip-path="[^"]*"|(?<=<g) id="[^"]*"', "", text)
    for colour in (INK[0], SOFT[0]):
        text = text.replace(colour, "currentColor")
    return Markup(text)  # escaped by matplotlib
