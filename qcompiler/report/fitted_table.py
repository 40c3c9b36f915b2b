"""A table for the width that there is: what matters least is left out of a narrow terminal, and said to be.

A column has a rank (0: never left out; of the others the largest go first) and a least width that it may be narrowed to.
On a screen narrower than ``WIDE`` a row is one line where it can be and two at most, and what is cut is marked by an
ellipsis: names in their middle, sentences at their end. From ``WIDE`` on (what is piped) nothing is cut; it takes more lines.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

WIDE = 160
"""Columns: of what is not a terminal."""
LEAST_NAME = 32
"""Columns of a layer's name: ``model.layers.12.self_attn.q_proj``."""
_GAP = "  "
_FLOOR = 8  # columns that the narrowest cell keeps
_SENTENCE = 32  # columns that words get before others are left out
_LINES = 2  # of a row on a narrow screen
_ELLIPSIS = "..."  # of ASCII: not every terminal has its sign
_INDENT = "  "  # of what stands below its row


@dataclass(frozen=True)
class Column:
    """How a column gives way.

    Attributes:
        rank: 0 is always shown; of the others those of the largest rank are left out first, and all of
            one rank together: nobody reads a 10th percentile without the 90th.
        kind: ``whole`` is never narrowed, ``name`` is cut in the middle, ``words`` are broken into lines.
        least: columns that a name is narrowed to before others are left out, and words from ``WIDE`` on (on less
            they keep what most rows need for one line).
        called: in the line on what is left out; None is the title.
        below: in a line under its row goes what has no place in it, of rows that ``tell``.
    """

    title: str
    rank: int = 0
    kind: Literal["whole", "name", "words"] = "whole"
    least: int = 0
    right: bool = False
    called: str | None = None
    below: bool = False


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns; ``tell``: what is in a column ``below`` shall not go with it."""

    cells: Sequence[str]
    style: str = ""
    tell: bool = False


@dataclass(frozen=True)
class FittedTable:
    """Columns and rows, laid out when it is printed; ``title`` is a line above."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = options.max_width
        widths = self._widths(width)
        if self.title:
            yield Text(self.title)
        titles = [
            (place, _broken(column.title, widths[place]))
            for place, column in enumerate(self.columns)
            if widths[place]
        ]
        yield from self._lines(titles, widths, width, "bold")
        for row in self.rows:
            yield from self._row(row, widths, width)
        gone = [
            column.called if column.called is not None else column.title
            for place, column in enumerate(self.columns)
            if not widths[place] and any(row.cells[place] for row in self.rows)
        ]
        if gone:
            yield Text(f"left out: {', '.join(gone)} (--json or a wider screen has them)", style="dim")

    def _widths(self, width: int) -> list[int]:
        """Of each column; 0 of those that are left out."""
        gap = len(_GAP)
        natural = [
            max([cell_len(column.title), *(cell_len(row.cells[place]) for row in self.rows)])
            for place, column in enumerate(self.columns)
        ]
        if sum(natural) + gap * (len(natural) - 1) <= width:
            return natural
        least = [self._least(place, natural[place], width >= WIDE) for place in range(len(self.columns))]
        widths, left = [0] * len(natural), width + gap
        for rank in sorted({column.rank for column in self.columns}):
            places = [place for place, column in enumerate(self.columns) if column.rank == rank]
            size = sum(least[place] + gap for place in places)
            if not rank or size <= left:
                left -= size
                for place in places:
                    widths[place] = least[place]
        while left < 0:  # columns of rank 0 alone are too wide
            widest = max(range(len(widths)), key=lambda place: self._can_narrow(place) * widths[place])
            if widths[widest] <= _FLOOR or not self._can_narrow(widest):
                break
            widths[widest] -= 1
            left += 1
        # What is left over: most rows in a line each, then whole names, then the narrowest columns.
        half = max(width // 2, _FLOOR)
        goals = (
            [self._most(place) for place in range(len(widths))],
            [
                min(size, half) if self.columns[place].kind == "name" else 0
                for place, size in enumerate(natural)
            ],
            natural,
        )
        for goal in goals:
            while left > 0:
                short = [place for place, size in enumerate(widths) if 0 < size < goal[place]]
                if not short:
                    break
                widths[min(short, key=lambda place: widths[place])] += 1
                left -= 1
        return widths

    def _can_narrow(self, place: int) -> bool:
        return self.columns[place].kind != "whole"

    def _least(self, place: int, natural: int, wide: bool) -> int:
        """Columns that it takes before another is left out."""
        column = self.columns[place]
        title = max(map(len, column.title.split()), default=0)
        if not self._can_narrow(place):
            return max([title, *(cell_len(row.cells[place]) for row in self.rows)])
        least = column.least
        if column.kind == "words" and not wide:
            least = self._most(place) if column.below else min(self._most(place), _SENTENCE)
        return min(natural, max(title, least))

    def _most(self, place: int) -> int:
        """Columns in which three of four cells that say something are one line; 0 of a column that is not of words."""
        sizes = sorted(cell_len(row.cells[place]) for row in self.rows if row.cells[place])
        return sizes[len(sizes) * 3 // 4] if sizes and self.columns[place].kind == "words" else 0

    def _row(self, row: Row, widths: Sequence[int], width: int) -> Iterator[Text]:
        if width >= WIDE:
            whole = [(place, _broken(row.cells[place], size)) for place, size in enumerate(widths) if size]
            yield from self._lines(whole, widths, width, row.style)
            return
        below = [
            row.cells[place]
            for place, column in enumerate(self.columns)
            if column.below and row.tell and not _fits(row.cells[place], widths[place])
        ]
        lines = 1 if below else _LINES
        cells = []
        for place, column in enumerate(self.columns):
            if widths[place]:
                cell = "" if row.cells[place] in below and column.below else row.cells[place]
                if column.kind == "words":
                    cells.append((place, _cut_words(cell, widths[place], lines)))
                else:
                    cells.append((place, [cut_middle(cell, widths[place])]))
        yield from self._lines(cells, widths, width, row.style)
        if below:
            name = row.cells[0]
            indent = _INDENT + name[: len(name) - len(name.lstrip())]
            said = _cut_words("; ".join(below), width - len(indent), 1)
            yield Text(indent + said[0], style=row.style, no_wrap=True)

    def _lines(
        self, cells: Sequence[tuple[int, list[str]]], widths: Sequence[int], width: int, style: str
    ) -> Iterator[Text]:
        """One text for each line of a row."""
        for number in range(max((len(lines) for _, lines in cells), default=0)):
            parts = []
            for place, lines in cells:
                part = lines[number] if number < len(lines) else ""
                space = " " * (widths[place] - cell_len(part))
                parts.append(space + part if self.columns[place].right else part + space)
            line = _GAP.join(parts).rstrip()
            # Nothing to read is still a line, and one too long for a screen of a few columns is cut.
            yield Text(cut_middle(line, width), style=style, no_wrap=True, overflow="crop")


def rows_of(rows: Iterable[Sequence[str]]) -> list[Row]:
    """Rows without a style."""
    return [Row(cells) for cells in rows]


def cut_middle(text: str, width: int) -> str:
    """``model.lay...down_proj``: a little more of the end, where names differ."""
    if cell_len(text) <= width:
        return text
    indent = len(text) - len(text.lstrip()) if width > _FLOOR else 0
    room = max(width - len(_ELLIPSIS), 0)
    head = min(max(indent, room * 2 // 5), room)
    start, end = text[:head], text[len(text) - (room - head) :]
    while cell_len(start) + cell_len(end) > room:  # signs that are two wide
        start, end = (start[:-1], end) if cell_len(start) > cell_len(end) else (start, end[1:])
    return f"{start}{_ELLIPSIS}{end}"[:width]


def _broken(text: str, width: int) -> list[str]:
    """Whole, in lines: at spaces and after slashes, within a word only where it is longer than a line."""
    if cell_len(text) <= width:
        return [text]
    lines, line = [], ""
    for piece in _pieces(text):
        if cell_len((line + piece).rstrip()) > width:
            if line.strip():
                lines.append(line.rstrip())
            *full, line = chop_cells(piece, width) if cell_len(piece.rstrip()) > width else [piece]
            lines += full
        else:
            line += piece
    return [*lines, line.rstrip()] if line.strip() else lines


def _cut_words(text: str, width: int, most: int) -> list[str]:
    """In at most so many lines; the last ends in an ellipsis where there is more."""
    if cell_len(text) <= width:
        return [text]
    if most == 1:
        return [_cut_end(text, width)]
    whole = "".join(
        cut_middle(piece.rstrip(), width) + piece[len(piece.rstrip()) :] for piece in _pieces(text)
    )
    lines = _broken(whole, width)
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], _cut_end(" ".join(lines[most - 1 :]), width)]


def _cut_end(text: str, width: int) -> str:
    while cell_len(text) > width - len(_ELLIPSIS):
        text = text[:-1]
    return (text.rstrip() + _ELLIPSIS)[:width]


def _fits(text: str, width: int) -> bool:
    return not text or (width > 0 and len(_broken(text, width)) <= _LINES)


def _pieces(text: str) -> list[str]:
    """Up to a space or a slash each, that included."""
    return [piece for piece in re.split(r"(?<=[\s/])(?=[^\s/])", text) if piece]
