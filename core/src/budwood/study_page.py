"""What a study leaves: ``study.csv``, ``summary.csv``, ``pairs.csv``, figures as SVG, and ``study.html`` with all of it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from budwood import config as configs
from budwood.charts import Charts, document, standalone
from budwood.folder import DONE, disk_error, write_atomically
from budwood.grid import Cell
from budwood.page import block, folded, page, table
from budwood.progress import duration, number
from budwood.redact import redact
from budwood.study_config import Study
from budwood.study_figures import Drawing, drawings
from budwood.study_table import Row, Tables, to_csv
from budwood.tracking import flatten
from budwood.yaml_io import dump

FILE = "study.html"


def write(folder: Path, study: Study, cells: Sequence[Cell], tables: Tables) -> dict[str, Path]:
    """Write everything into ``folder``; name -> path of what was written."""
    figures = [(figure, document(figure.draw, figure.size)) for figure in drawings(study.config, tables)]
    paths = {
        "study.csv": to_csv(folder / "study.csv", tables.cells),
        "summary.csv": to_csv(folder / "summary.csv", tables.summary),
        "pairs.csv": to_csv(folder / "pairs.csv", tables.pairs),
    }
    for figure, drawn in figures:
        paths[f"{figure.name}.svg"] = folder / f"{figure.name}.svg"
        write_atomically(paths[f"{figure.name}.svg"], standalone(drawn))
    body = [
        f'<header><p class="name">budwood study</p><h1>{escape(study.config.name)}</h1></header>',
        _tiles(study, tables),
        *(f'<p class="bad">{escape(note)}</p>' for note in tables.notes),
        *_figures(figures),
        block("Summary", table(map(_known, shown_summary(tables)))),
        block("Probability of improvement", table(shown_pairs(tables))) if tables.pairs else "",
        _differences(cells),
        folded("Runs", table(map(_known, tables.cells))),
        folded("Study", f"<pre>{escape(dump(redact(study.document)))}</pre>"),
    ]
    paths[FILE] = folder / FILE
    write_atomically(paths[FILE], page(study.config.name, body))
    return paths


def copy_for_docs(paths: Mapping[str, Path], to: Path) -> list[Path]:
    """Tables and figures, without the page: what a documentation shows."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, to)) for name, path in paths.items() if name != FILE]
    except OSError as error:
        raise disk_error(error, to) from error


def shown_summary(tables: Tables) -> list[Row]:
    """The summary as people read it."""
    return [
        {
            "variant": row["variant"],
            "metric": row["metric"],
            "runs": row["n"],
            "IQM": row["iqm"],
            "95 % interval": _ends(row),
            "mean": row["mean"],
            "median": row["median"],
            **({"never reached": row["censored"]} if any(r["censored"] is not None for r in tables.summary) else {}),
        }
        for row in tables.summary
    ]


def shown_pairs(tables: Tables) -> list[Row]:
    return [
        {
            "metric": row["metric"],
            "is better": f"{row['x']} than {row['y']}",
            "probability": row["probability"],
            "95 % interval": _ends(row),
            "runs": f"{row['n_x']} and {row['n_y']}",
        }
        for row in tables.pairs
    ]


def _known(row: Row) -> Row:
    return {key: None if value != value else value for key, value in row.items()}


def _ends(row: Row) -> str:
    return "" if math.isnan(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"


def _tiles(study: Study, tables: Tables) -> str:
    done = [row for row in tables.cells if row["status"] in DONE]
    minutes = sum(row["cpu_minutes"] for row in tables.cells)
    tiles = {
        "runs finished": f"{len(done)} of {len(tables.cells)}",
        "variants": str(len(study.config.variants)),
        "seeds": str(len(study.config.seed_list)),
        "environment steps": f"{sum(row['env_steps'] for row in tables.cells):,}",
        "processor time": duration(60 * minutes),
    }
    cells = "".join(f'<div class="tile"><dt>{name}</dt><dd>{value}</dd></div>' for name, value in tiles.items())
    return f'<dl class="tiles">{cells}</dl>'


def _figures(figures: Sequence[tuple[Drawing, str]]) -> Iterator[str]:
    charts = Charts()
    for figure, drawn in figures:
        caption = f"<figcaption>{escape(figure.caption)}</figcaption>"
        yield block(figure.title, f"<figure>{charts.place(drawn)}{caption}</figure>")


def _differences(cells: Sequence[Cell]) -> str:
    """What the runs on disk say they were, not what the file says: one column a variant, rows where they differ."""
    recorded: dict[str, dict[str, str]] = {}
    for cell in cells:
        if cell.variant not in recorded and cell.run.config_file.exists():
            recorded[cell.variant] = flatten(configs.load(cell.run.config_file).data)
    rows = differences(recorded)
    return block("What the variants differ in", table(rows)) if rows else ""


def differences(flat: Mapping[str, Mapping[str, str]], but: Sequence[str] = ("name", "seed")) -> list[dict[str, Any]]:
    """``flat``: column -> dotted key -> value as text. One row a key that is not the same everywhere."""
    keys = dict.fromkeys(key for one in flat.values() for key in one if key not in but)
    return [
        {"setting": key, **{column: one.get(key, "") for column, one in flat.items()}}
        for key in keys
        if len({one.get(key) for one in flat.values()}) > 1
    ]
