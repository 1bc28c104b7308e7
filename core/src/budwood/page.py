"""The pieces of a self-contained HTML page, and its looks: no scripts, nothing fetched, light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from budwood.progress import number
from budwood.redact import without_secrets


def page(title: str, body: Sequence[str]) -> str:
    """A whole document; empty parts are left out."""
    text = without_secrets("\n".join(part for part in body if part))
    return _PAGE.format(title=escape(title), style=_STYLE, body=text)


def block(title: str, content: str, who: str = "") -> str:
    by = f' <span class="who">{escape(who)}</span>' if who else ""
    return f"<section><h2>{escape(title)}{by}</h2>{content}</section>"


def folded(title: str, content: str) -> str:
    return f"<section><details><summary><h2>{escape(title)}</h2></summary>{content}</details></section>"


def table(rows: Iterable[Mapping[str, object]]) -> str:
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(column))}</td>' for column in columns)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return number(float(value))
    return "" if value is None else escape(str(value))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6676; --line: #dfe4ea; --back: #f6f7f9; --card: #fff;
  --bad: #b3261e; --s0: #2f6f4f; --s1: #c8642c; --s2: #3a6ea5; --s3: #8a5aa8; --s4: #b08a1e; --s5: #64748b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #313a46; --back: #14181d;
  --card: #1b2027; --bad: #f2b8b5; --s0: #6fbf93; --s1: #e79562; --s2: #7fb0e0; --s3: #c39bdc; --s4: #dcbf63;
  --s5: #9fb0c4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .9rem; } h3 { font-size: .92rem; font-weight: 600; margin: 0 0 .3rem; }
.name { margin: 0; color: var(--s0); font-weight: 600; font-size: .85rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem 1.4rem;
  margin-top: 1.1rem; }
section p { max-width: 46rem; margin: 0 0 .8rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .85rem 1rem; }
dt { color: var(--soft); font-size: .82rem; } dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.tile p { margin: .2rem 0 0; color: var(--soft); font-size: .78rem; line-height: 1.35; }
section > h2 { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; column-gap: 1rem; }
.who { color: var(--soft); font-size: .8rem; font-weight: 400; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .85rem; margin-top: .3rem; }
figure svg { width: 100%; height: auto; display: block; }
figure img { width: min(100%, 22rem); display: block; } svg text { font-family: inherit !important; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.2rem;
  margin-bottom: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--soft); font-weight: 500; } tr:last-child td { border-bottom: 0; }
td svg { display: block; }
pre { margin: .9rem 0 0; overflow-x: auto; font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
summary { cursor: pointer; } summary h2 { display: inline; margin: 0; } details > .wide { margin-top: .9rem; }
.bar { display: flex; height: 14px; border-radius: 7px; overflow: hidden; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; padding: 0; margin: .8rem 0 0;
  font-size: .88rem; } .legend i { display: inline-block; width: .7em; height: .7em; border-radius: 2px;
  margin-right: .45em; } .legend b { color: var(--soft); font-weight: 400; margin-left: .3em; }
.s0 { background: var(--s0); } .s1 { background: var(--s1); } .s2 { background: var(--s2); }
.s3 { background: var(--s3); } .s4 { background: var(--s4); } .s5 { background: var(--s5); }
.bad { color: var(--bad); }
@media print { body { background: none; } section, .tile { break-inside: avoid; } }
"""

LIGHT = dict(re.findall(r"--(\w+): (#\w+)", _STYLE.partition("@media")[0]))
"""Name of a colour -> its value on the light page."""
