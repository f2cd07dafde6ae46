"""The page of a run, or of several side by side: one HTML file that needs no network and no other file.

    RunFacts  ->  HTML (str)

Templates are Jinja's, with everything escaped; pictures stand in the page. Must not import torch.
"""

import base64
import importlib.resources
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vqgpt.options.codec import flat
from vqgpt.pictures.sheet import contact_sheet, png_bytes, to_pil
from vqgpt.report import charts
from vqgpt.report.charts import Chart, Series
from vqgpt.report.diagnosis import findings
from vqgpt.report.facts import RunFacts, Sheet

MARK = '<meta name="generator" content="vqgpt report">'
CURVES = {  # figures of metrics.jsonl: title, unit, logarithmic
    "vqgan-train": {
        ("loss", "pixel_loss"): ("VQ-GAN: loss", "loss", False),
        ("psnr_db",): ("VQ-GAN: held-out PSNR", "dB", False),
        ("epoch_used_codes", "epoch_perplexity"): ("VQ-GAN: codes in use", "number", False),
        ("images_per_second",): ("VQ-GAN: speed", "images/s", False),
    },
    "train": {
        ("loss", "held_out_nats_per_token"): ("GPT: loss", "nats per token", False),
        ("gradient_norm",): ("GPT: gradient norm", "norm before clipping", True),
        ("learning_rate",): ("GPT: learning rate", "at the end of an epoch", False),
        ("tokens_per_second",): ("GPT: speed", "tokens/s", False),
    },
}
WORDS = {
    "loss": "training",
    "pixel_loss": "pixels alone",
    "psnr_db": "held out",
    "epoch_used_codes": "used",
    "epoch_perplexity": "perplexity",
    "images_per_second": "training",
    "held_out_nats_per_token": "held out",
    "gradient_norm": "norm",
    "learning_rate": "rate",
    "tokens_per_second": "training",
}
STAGES = {
    "vqgan-train": "VQ-GAN",
    "tokenize": "Token cache",
    "train": "GPT",
    "sample": "Samples",
}
SHORT_DIGEST = 16
LARGEST_SIDE = 64  # of images that are shown pixel by pixel
SIDE_OF_LARGE_ONES = 160  # pixels, to which others are reduced
WEBP_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells below their headings; the first of each row names it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart with the table of its numbers, for those who would rather read them."""

    svg: str
    numbers: Table


def page(runs: Sequence[RunFacts]) -> str:
    """The page of one run, or of several side by side."""
    import jinja2

    files = importlib.resources.files("vqgpt.report")
    theme = (importlib.resources.files("vqgpt.pictures") / "theme.css").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.globals |= {"data_uri": data_uri, "mark": MARK}
    template = environment.from_string((files / "page.html").read_text("utf-8"))
    return template.render(
        title=" and ".join(run.name for run in runs),
        style=theme + (files / "page.css").read_text("utf-8"),
        script=(files / "page.js").read_text("utf-8"),
        runs=[(run, findings(run)) for run in runs],
        drawings=list(drawings(runs)),
        figures=list(figures(runs)),
        sheets=sheets_in_rows(runs) if len(runs) > 1 else runs[0].sheets,
        settings=list(settings(runs)),
    )


def data_uri(sheet: Sheet) -> str:
    """A sheet as a picture in the page: PNG, or WebP of smaller images where they are large."""
    longest = max(sheet.images.shape[2:])
    if len(sheet.images) == 1 or longest <= LARGEST_SIDE:
        picture = contact_sheet(sheet.images, sheet.captions, sheet.columns)
        return f"data:image/png;base64,{base64.b64encode(png_bytes(picture, {})).decode()}"
    scale, buffer = min(1.0, SIDE_OF_LARGE_ONES / longest), io.BytesIO()
    height, width = (max(1, round(side * scale)) for side in sheet.images.shape[2:])
    smaller = [np.asarray(to_pil(image).resize((width, height), Image.Resampling.BOX)) for image in sheet.images]
    images = np.stack([each[None] if each.ndim == 2 else each.transpose(2, 0, 1) for each in smaller])
    contact_sheet(images, sheet.captions, sheet.columns).save(buffer, format="WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def drawings(runs: Sequence[RunFacts]) -> Iterable[Drawing]:
    """The curves, those of all runs in one chart each."""
    for table, of_stage in CURVES.items():
        for names, (title, unit, logarithmic) in of_stage.items():
            series = []
            for run in runs:
                for name in names:
                    x, y = run.curve(table, name)
                    label = f"{run.name}: {WORDS[name]}" if len(runs) > 1 else WORDS[name]
                    if x and not (logarithmic and min(y) <= 0):
                        series.append(Series(name=label, x=tuple(x), y=tuple(y)))
            if series:
                chart = Chart(title=title, x_title="epoch", unit=unit, series=tuple(series), logarithmic=logarithmic)
                yield Drawing(svg=charts.svg(chart), numbers=numbers_of(chart))


def numbers_of(chart: Chart) -> Table:
    """The values of a chart, by x."""
    thinned = [series.thinned(charts.MOST_POINTS) for series in chart.series]
    values = [dict(zip(series.x, series.y, strict=True)) for series in thinned]
    rows = (
        (f"{x:g}", *(f"{each[x]:.4g}" if x in each else "" for each in values)) for x in sorted(set().union(*values))
    )
    headings = (chart.x_title, *(series.name for series in chart.series))
    return Table(title=f"{chart.title}, {chart.unit}", headings=headings, rows=tuple(rows))


def figures(runs: Sequence[RunFacts]) -> Iterable[Table]:
    """The evaluations: a figure in each row, with its interval, for each run; of two, their difference."""
    columns = (*(run.name for run in runs), *(("difference",) if len(runs) == 2 else ()))
    heading = columns if len(runs) > 1 else ("value",)
    for kind, title in (("samples", "Samples"), ("tokenizer", "Tokenizer"), ("gpt", "GPT")):
        found = [figures_of(kind, run.evaluations.get(kind, {})) for run in runs]
        names = list(dict.fromkeys(name for each in found for name in each))
        rows = []
        for name in names:
            values = [each.get(name) for each in found]
            cells = [_cell(value) for value in values]
            if len(values) == 2:
                cells.append(f"{values[1][0] - values[0][0]:+.4g}" if values[0] and values[1] else "")
            rows.append((name, *cells))
        if rows:
            yield Table(title=title, headings=("figure", *heading), rows=tuple(rows))


Value = tuple[float, float | None, float | None]  # with the ends of its interval


def figures_of(kind: str, entry: Mapping[str, Any]) -> dict[str, Value]:
    """What an entry of an evaluation says in numbers, by name."""
    found: dict[str, Value] = {}
    if kind == "samples":
        found |= {name: _value(figure) for name, figure in entry.get("figures", {}).items()}
        consistency = (entry.get("class_consistency") or {}).get("samples")
        found |= {"class as asked for": _value({"value": consistency["share"], **consistency})} if consistency else {}
        tokens = entry.get("copies_by_tokens")
        found |= {"copies, token for token": (float(tokens["samples"]["copies"]), None, None)} if tokens else {}
    elif kind == "tokenizer":
        for split, measured in entry.get("splits", {}).items():
            found |= {f"{split}: {name}": _value(each) for name, each in measured["metrics"].items()}
            for what, of_what in (("reconstructions", "reconstructions"), ("perturbed_codes", "perturbed codes")):
                distances = measured.get(what, {})
                found |= {f"{split}: {name} of {of_what}": _value(each) for name, each in distances.items()}
    else:
        for split, measured in entry.get("splits", {}).items():
            low, high = measured["interval"]
            found[f"{split}: bits per token"] = (measured["bits_per_token"], low, high)
        for name, baseline in entry.get("baselines", {}).items():
            found[f"bits per token, {name.replace('_', ' ')}"] = (baseline["bits_per_token"], None, None)
    return found


def _value(figure: Mapping[str, Any]) -> Value:
    return float(figure["value"]), figure.get("low"), figure.get("high")


def _cell(value: Value | None) -> str:
    if value is None:
        return ""
    number, low, high = value
    return f"{number:.4g}" if low is None or high is None else f"{number:.4g} [{low:.4g}, {high:.4g}]"


def sheets_in_rows(runs: Sequence[RunFacts]) -> list[Sheet]:
    """The sheets of the same title, those of each run after those of the one before."""
    titles = list(dict.fromkeys(sheet.title for run in runs for sheet in run.sheets))
    return [
        Sheet(
            title=f"{sheet.title}: {run.name}",
            text=sheet.text,
            images=sheet.images,
            captions=sheet.captions,
            columns=sheet.columns,
        )
        for title in titles
        for run in runs
        for sheet in run.sheets
        if sheet.title == title
    ]


def settings(runs: Sequence[RunFacts]) -> Iterable[Table]:
    """The configuration of each stage; of several runs, what differs."""
    for table, title in STAGES.items():
        stages = [run.stages.get(table) for run in runs]
        values = [flat(stage.configuration) if stage else {} for stage in stages]
        names = list(dict.fromkeys(key for each in values for key in each))
        if len(runs) > 1:
            names = [name for name in names if len({str(each.get(name)) for each in values}) > 1]
        rows = [(name, *(_written(each.get(name)) for each in values)) for name in names]
        about = {
            "file": [f"{stage.digest[:SHORT_DIGEST]}" if stage and stage.digest else "" for stage in stages],
            "seconds": [f"{stage.seconds:.1f}" if stage and stage.seconds is not None else "" for stage in stages],
        }
        rows += [(name, *cells) for name, cells in about.items() if any(cells)]
        if rows:
            heading = tuple(run.name for run in runs) if len(runs) > 1 else ("value",)
            yield Table(title=title, headings=("option", *heading), rows=tuple(rows))


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and np.isfinite(value) else str(value)
