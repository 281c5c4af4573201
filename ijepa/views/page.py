"""The report's page: scores and curves in one HTML file that loads nothing."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ijepa.paper import numbers_by
from ijepa.stores.results import ProbeResult
from ijepa.views.chart import Series, line_chart
from ijepa.views.seeds import OverSeeds

Records = Sequence[dict[str, float]]

CURVES = (  # fields of a record, label of the axis, what the reader should know
    (("loss",), "loss", "The loss alone does not show progress: targets move, too."),
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


class RunView(NamedTuple):
    """What the page shows of a run."""

    name: str
    summary: str
    charts: list[Chart]
    config: str


def run_charts(records: Records) -> list[Chart]:
    """The curves of a run's `metrics.jsonl`, over images seen."""
    charts = []
    for fields, label, caption in CURVES:
        series = [_series(records, field) for field in fields]
        if all(line.x for line in series):
            charts.append(Chart(line_chart(series, "images seen", label), caption))
    return charts


def page(
    results: Sequence[ProbeResult],
    runs: Sequence[RunView],
    over_seeds: Sequence[OverSeeds] = (),
) -> str:
    """The whole HTML text."""
    environment = Environment(
        loader=PackageLoader("ijepa", "views"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        results=results,
        runs=runs,
        over_seeds=over_seeds,
        version=version("ijepa"),
        percent=percent,
        paper_numbers=numbers_by,
    )


def percent(share: float, digits: int = 2) -> str:
    """0.4821 as 48.21%."""
    return f"{100 * share:.{digits}f}%"


def _series(records: Records, field: str) -> Series:
    points = [(record.get("images", 0.0), record[field]) for record in records if field in record]
    name = field.replace("_", " ")
    return Series(name, [x for x, _ in points], [y for _, y in points])
