"""One HTML file that holds everything: tables, pictures as base64, style in the head; it loads nothing.

There is no template language: a page is a list of sections, and every string in them is escaped in one place.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from tfmuscle.report.figures import figure_png


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a page. All text is shown as it is: nothing in it is HTML.

    Attributes:
        title: heading.
        text: paragraphs, separated by line breaks.
        table: rows; the keys of the first are the columns.
        pictures: caption -> figure, or PNG file.
        notice: whether it must not be overlooked.
        folded: whether it is closed at first.
    """

    title: str
    text: str = ""
    table: Sequence[Mapping[str, Any]] = ()
    pictures: Mapping[str, Figure | bytes] = field(default_factory=dict)
    notice: bool = False
    folded: bool = False


_NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+|\u2013|")
"""Text of a cell that stands in a column of numbers."""
_LONG = 45
"""Cells with more characters than this may be broken into lines."""
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --warn: #d9730d; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } summary { cursor: pointer; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { white-space: nowrap; } td.long { white-space: normal; min-width: 24rem; overflow-wrap: anywhere; }
.number { text-align: right; } tbody tr:nth-child(even) { background: var(--soft); }
figure { margin: 1rem 0; } img { max-width: 100%; background: white; border-radius: 4px; }
figcaption { font-size: .9rem; opacity: .8; overflow-wrap: anywhere; }
.notice { border: 2px solid var(--warn); border-radius: 6px; padding: 0 1rem 1rem; margin: 1.5rem 0; }
.notice h2 { margin-top: .6rem; }
@media print {
  @page { margin: 14mm 12mm; } :root { color-scheme: light; } body { max-width: none; margin: 0; font-size: 9.5pt; }
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .12rem .35rem; }
  td, td.long { white-space: normal; min-width: 0; } td.number { white-space: nowrap; }
  thead { display: table-header-group; } tr, figure, img { break-inside: avoid; } h2 { break-after: avoid; }
  img { max-height: 225mm; } details::details-content { content-visibility: visible; display: block; }
}
"""


def html_page(title: str, sections: Sequence[Section], *, refresh: int = 0) -> str:
    """Returns a page in one file, readable in light and dark, with every string escaped.

    Args:
        title: of the page.
        sections: its parts.
        refresh: seconds after which a browser loads it again; 0 for a page that is complete.
    """
    body = "\n".join(_section(section) for section in sections)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    head += f'<meta http-equiv="refresh" content="{refresh}">' * (refresh > 0)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<p>{html.escape(line)}</p>" for line in section.text.splitlines() if line.strip()]
    if section.table:
        parts.append(_table(section.table))
    for caption, picture in section.pictures.items():
        data = base64.b64encode(picture if isinstance(picture, bytes) else figure_png(picture)).decode()
        name = html.escape(caption)
        image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{image}<figcaption>{name}</figcaption></figure>")
    content, heading = "\n".join(parts), f"<h2>{html.escape(section.title)}</h2>"
    if section.folded:
        return f"<details><summary>{html.escape(section.title)}</summary>{content}</details>"
    return f"<section{' class=notice' * section.notice}>{heading}\n{content}</section>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0])
    numeric = {name for name in columns if all(_is_number(row.get(name, 0)) for row in rows)}
    head = "".join(f"<th{_class(name in numeric)}>{html.escape(name)}</th>" for name in columns)
    lines = ["".join(_cell(row.get(name, ""), name in numeric) for name in columns) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None)


def _class(is_number: bool, is_long: bool = False) -> str:
    return ' class="number"' if is_number else ' class="long"' if is_long else ""


def _cell(value: Any, is_number: bool) -> str:
    text = str(value)
    if isinstance(value, float):
        text = "–" if value != value else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return f"<td{_class(is_number, len(text) > _LONG)}>{html.escape(text)}</td>"
