"""A self-contained HTML page: its style, sections and tables. Nothing in it is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from edge_asr.errors import OutputError

CSS = """
:root { --ink:#1f2933; --faint:#616e7c; --line:#e4e7eb; --good:#2f855a; --bad:#c53030; }
* { box-sizing:border-box; }
body { font:15px/1.5 system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif; color:var(--ink);
  background:#f5f7fa; margin:0; }
main { max-width:1020px; margin:0 auto; padding:24px 20px 60px; }
section { background:#fff; border:1px solid var(--line); border-radius:10px; padding:18px 22px; margin:16px 0; }
h1 { font-size:24px; line-height:1.25; margin:0 0 6px; } h2 { font-size:17px; margin:0 0 10px; }
p { margin:6px 0; } .faint { color:var(--faint); font-size:13.5px; }
.verdict { border-left:8px solid var(--good); } .verdict.broken { border-left-color:var(--bad); }
.verdict h1 { color:var(--good); } .verdict.broken h1 { color:var(--bad); }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(200px,1fr)); gap:12px; margin-top:14px; }
.card { border:1px solid var(--line); border-radius:8px; padding:10px 12px; }
.card b { display:block; font-size:19px; font-variant-numeric:tabular-nums; } .card.broken b { color:var(--bad); }
.card span { color:var(--faint); font-size:12.5px; }
svg { width:100%; height:auto; display:block; font-family:inherit; }
table { border-collapse:collapse; width:100%; font-size:13px; font-variant-numeric:tabular-nums; }
th,td { text-align:left; padding:4px 10px 4px 0; border-bottom:1px solid var(--line); vertical-align:top; }
th { color:var(--faint); font-weight:600; } td.n,th.n { text-align:right; }
.kind { border-radius:9px; padding:1px 8px; font-size:12px; background:#edf2f7; white-space:nowrap; }
.kind.assumed { background:#fefcbf; } .kind.proxy { background:#feebc8; }
.kind.measured,.kind.exact { background:#c6f6d5; } .kind.published { background:#bee3f8; }
summary { cursor:pointer; font-weight:600; font-size:17px; } details[open] summary { margin-bottom:10px; }
.columns { display:grid; grid-template-columns:1fr 1fr; gap:26px; }
@media (max-width:760px) { .columns { grid-template-columns:1fr; } }
blockquote { margin:4px 0 10px; padding:6px 12px; border-left:3px solid var(--line); }
"""


def write_page(path: Path, title: str, sections: Sequence[str]) -> None:
    """Raises OutputError where the file cannot be written."""
    try:
        path.write_text(page(title, sections), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the report {path}: {error.strerror}; choose another place") from error


def page(title: str, sections: Sequence[str]) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{CSS}</style></head>'
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def section(title: str, *bodies: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(bodies)}</section>"


def columns(*bodies: str) -> str:
    return '<div class="columns">' + "".join(f"<div>{body}</div>" for body in bodies) + "</div>"


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: set[int] = frozenset()) -> str:
    """A table; cells are HTML already."""
    mark = [' class="n"' if i in numeric else "" for i in range(len(head))]
    top = "".join(f"<th{m}>{escape(h)}</th>" for h, m in zip(head, mark, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{c}</td>" for c, m in zip(row, mark, strict=True)) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"
