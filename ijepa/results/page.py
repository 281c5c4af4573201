"""The report's page, one HTML file that loads nothing, and what the scores say in sentences."""

import base64
import re
import statistics
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup, escape
from PIL import Image

from ijepa.errors import IjepaError
from ijepa.results.record import Score, Scores, result_id
from ijepa.results.tables import TableView, data_names, percent, probe_name
from ijepa.templating import templates

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
PAGE = ".html"
PICTURES = (*MEDIA, PAGE)  # what `ijepa visualize` makes
# Facts of a picture's record that tell what it shows, in this order, where it has them.
TELLING = ("encoder", "which", "layer", "layers", "data", "source", "split", "recipe", "seed")
SEEN = yaml.safe_load(
    resources.files("ijepa.results").joinpath("templates/pictures.yaml").read_text()
)  # what to see in a picture, by the stage that made it
SECTIONS = {
    "scores": "Scores",
    "ablation": "The paper's ablations at other scales",
    "paper": "The paper's tables",
}
SIGNIFICANT = 0.05  # a difference with a larger p value is not called one
P_BOUNDS = (0.001, 0.01, SIGNIFICANT)  # bounds of p values that a sentence names
MOST_ENCODERS = 3  # that get a sentence

Tests = Mapping[str, Sequence[tuple[float, float]]]  # (gain, p value) of each seed, by probe


class Picture(NamedTuple):
    """A picture inside the page."""

    name: str  # of its file, or the title of a chart
    html: Markup  # the element that shows it
    caption: str
    command: str = ""  # that made it; empty if it is not known
    facts: str = ""  # what it is of: encoder, data, ...
    is_image: bool = True  # or a page


def page(tables: Sequence[TableView], *, paper_first: bool, **shown: object) -> str:
    """The whole HTML text of tables, those of the paper perhaps first, and what templates show."""
    environment = templates("results/templates")
    environment.globals.update(result_id=result_id, encoders=_encoders)
    environment.filters.update(
        breakable=breakable,
        prose=lambda text: Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", str(escape(text)))),
        # The content of a CSS string, whatever is in the text.
        css_text=lambda text: re.sub(r"[^0-9A-Za-z]", lambda c: f"\\{ord(c[0]):06x}", text),
    )
    kinds = sorted(SECTIONS, key=lambda kind: kind == "scores" and paper_first)
    sections = [(k, SECTIONS[k], [t for t in tables if t.kind == k]) for k in kinds]
    return environment.get_template("page.html.j2").render(
        sections=[section for section in sections if section[2]],
        details=[table for table in tables if table.kind == "details"],
        **shown,
    )


def file_picture(path: Path, record: Mapping[str, Any] | None) -> Picture:
    """Take a PNG, JPEG, SVG or HTML file into the page, with the record of what made it."""
    facts, command = _facts(record), str((record or {}).get("command", ""))
    caption = SEEN.get(str((record or {}).get("stage")), "")
    suffix, size = path.suffix.lower(), Markup()
    try:
        text = path.read_text() if suffix in (PAGE, ".svg") else ""
        if suffix not in (PAGE, ".svg"):
            with Image.open(path) as image:
                image.load()
                if record:  # drawn for fine screens, with two pixels for one of the page
                    size = Markup(' width="{}"').format(image.width // 2)
    except UnicodeDecodeError as error:
        raise IjepaError(f"{path} is not UTF-8 text ({error.reason}). Rebuild it.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise IjepaError(f"{path} cannot be read as a picture ({error}). Rebuild it.") from error
    if suffix == PAGE:
        html = Markup('<iframe sandbox="allow-scripts" title="{}" srcdoc="{}"></iframe>')
        html = html.format(path.name, text)
        return Picture(path.name, html, caption, command, facts, is_image=False)
    if suffix == ".svg" and "<svg" not in text:
        raise IjepaError(f"{path} is not an SVG picture. Rebuild it with `ijepa visualize`.")
    address = f"data:{MEDIA[suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    alt = f"{path.name}: {caption or facts}"
    html = Markup('<img src="{}" alt="{}"{}>').format(address, alt, size)
    return Picture(path.name, html, caption, command, facts)


def _facts(record: Mapping[str, Any] | None) -> str:
    """What a picture is of: the settings that tell the most."""
    if record is None:
        return "There is no record beside the file, so what it shows is unknown."
    known = {**record.get("config", {}), **record}
    told = []
    for name in TELLING:
        value = known.get(name)
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(one, str | int) for one in values):
            told.append(f"{name} {' and '.join(map(str, values))}")
    return ", ".join([str(record.get("stage", "made by hand")), *told])


def breakable(path: str) -> Markup:
    """A path that a narrow page may break behind a separator, not only in the middle of a word."""
    return Markup(re.sub("([/_:-])", r"\1<wbr>", str(escape(path))))


def _encoders(result: Scores) -> list[Score]:
    """A score of each encoder of a result."""
    views = ("encoder", "weights_sha256", "which", "layers", "pooling", "image_px", "test_features")
    found = {str([getattr(score, name) for name in views]): score for score in reversed(result)}
    return list(reversed(found.values()))


def short_name(encoder: str) -> str:
    """Such as `raw pixels`; a run by its last folder."""
    if re.fullmatch(r"pixels(/\d+)?(@\S+)?", encoder):
        return "raw pixels"
    if encoder.startswith("random:"):
        return "random initialisation"
    name = encoder.removesuffix(" (target)")
    return name if ":" in name else name.rstrip("/").rpartition("/")[2]


def told_apart(encoders: Sequence[str]) -> list[str]:
    """Short names of encoders; the full ones where two have the same short one."""
    short = [short_name(encoder) for encoder in encoders]
    return short if len({*short}) == len(short) else list(encoders)


def verdict(results: Sequence[Scores]) -> list[str]:
    """A sentence on the first encoder of each result and its baselines, then what limits this."""
    if not results:
        return ["There are no scores yet, so nothing here says how good the features are."]
    data = data_names(score for result in results for score in result)
    leads: dict[str, list[Score]] = {}
    names: dict[str, str] = {}  # of the baselines, by family
    found: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    for result in results:
        first = {score.setting: score for score in reversed(result)}
        for lead in first.values():
            leads.setdefault(_family(lead), []).append(lead)
        for score in result:
            if score.p_value is None:  # the first encoder itself, or a mean over draws
                continue
            lead, probe = first[score.setting], f"{score.label} ({probe_name(score)})"
            probe = " of ".join(filter(None, [probe, data[score.source]]))
            others = found.setdefault(_family(lead), {})
            tests = others.setdefault(_family(score), {})
            names.setdefault(_family(score), score.encoder)
            tests.setdefault(probe, []).append((lead.top1 - score.top1, score.p_value))
    said = []
    for family, scores in list(leads.items())[:MOST_ENCODERS]:
        is_ours = len(leads) == 1 and scores[0].provenance.method
        name = f"The {'pretrained ' * bool(is_ours)}encoder"
        name += "" if is_ours else f" {short_name(scores[0].encoder)}"
        pairs = found.get(family, {})
        shown = told_apart([names[other] for other in pairs])
        named = dict(zip(shown, pairs.values(), strict=True))
        is_dense = any(score.headline != "top-1" for score in scores)
        tested = "paired tests" if is_dense else "McNemar's test"
        said.append(_compared(name, named, tested) if pairs else _alone(name, scores))
    if len(leads) > MOST_ENCODERS:
        said.append(f"The tables below have {len(leads) - MOST_ENCODERS} more encoders.")
    return [*said, *_limits(leads, found)]


def _family(score: Score) -> str:
    """Equal for encoders that differ in their seed only."""
    return f"{score.which} {score.family}"


def _compared(name: str, tests_by_other: Mapping[str, Tests], tested: str) -> str:
    """On how many probes an encoder beats each other one, and on which others beat it."""
    wins: list[str] = []
    losses: list[str] = []
    used: list[float] = []
    total = 0
    for other, tests in tests_by_other.items():
        won = [p for p, pairs in tests.items() if all(g > 0 and v < SIGNIFICANT for g, v in pairs)]
        lost = [p for p, pairs in tests.items() if all(g < 0 and v < SIGNIFICANT for g, v in pairs)]
        used += [max(value for _, value in tests[probe]) for probe in (*won, *lost)]
        total += len(tests)
        share = f"{len(won) or 'none'} of {len(tests)}{'' if wins else ' probes'}"
        if len(tests) == 1:
            share = "the one probe" if won else "no probe"
        wins.append(f"{other} on {share}")
        is_better = "are better" if other.endswith("pixels") else "is better"
        losses += [f"{other} {is_better} on {_joined(lost)}"] if lost else []
    text = "; ".join([f"{name} beats {_joined(wins)}", *losses])
    if used:
        bound = next(bound for bound in P_BOUNDS if max(used) < bound)
        text += f" ({tested}, p < {bound:g}{' each' * (len(used) > 1)})"
    rest = total - len(used)
    others = "No other difference is" if used else "No difference is"
    return f"{text}." + (f" {others} clear." if rest else "")


def _alone(name: str, scores: Sequence[Score]) -> str:
    """What an encoder reaches on its first probe, where no paired test was made."""
    first, probe = scores[0], (scores[0].label, probe_name(scores[0]))
    alike = [score for score in scores if (score.label, probe_name(score)) == probe]
    # Features that were stored twice are one encoder.
    seeds = {(one.provenance.seed, one.seed, one.weights): one for one in alike}
    top1 = statistics.mean(score.top1 for score in seeds.values())
    over = f" on average over {len(seeds)} scores" if len(seeds) > 1 else ""
    above = "above" if first.top1_interval[0] > first.chance else "not clearly above"
    return (
        f"{name} reaches {percent(top1, 1)}%{over} on {first.label} ({probe[1]}), {above} the "
        f"{percent(first.chance, 1)}% of {first.guess}."
    )


def _limits(leads: Mapping[str, Sequence[Score]], found: Mapping[str, object]) -> list[str]:
    """What the sentences cannot say."""
    said = []
    if not found:
        averaged = any(score.draws_std is not None for scores in leads.values() for score in scores)
        said.append(
            "Means over several draws have no paired test."
            if averaged
            else "Without a baseline this does not say what pretraining adds; give `ijepa probe` "
            "features of random:RUN or of pixels as --baseline-train and --baseline-test."
        )
    trained = {f: {s.provenance.seed for s in scores} for f, scores in leads.items()}
    if found and max(map(len, trained.values())) == 1:
        said.append("Each encoder was trained with one seed; another seed may come out otherwise.")
    return said


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
