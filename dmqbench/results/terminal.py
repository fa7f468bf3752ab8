"""Sheets on a terminal, as full as it is wide."""

from collections.abc import Sequence
from itertools import chain

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dmqbench.results.best import best_of
from dmqbench.results.seed_sheet import best_over_seeds, seed_sheet
from dmqbench.results.sheets import Cell, Sheet, sheet_of
from dmqbench.results.tables import Table

_NAME_WIDTH = 11


def fitted(table: Table, console: Console) -> tuple[Sheet, RichTable]:
    """Return the fullest sheet of jobs that the console holds."""
    best = best_of(table)
    full, compact = (sheet_of(table, short, best) for short in (False, True))
    return _fullest(full, compact, (compact.columns[-1], "MiB", *reversed(table.metrics[1:])), console)


def fitted_seeds(table: Table, console: Console) -> tuple[Sheet, RichTable] | None:
    """Return the fullest sheet over seeds that the console holds; None where no method has several."""
    best = best_over_seeds(table)
    full, compact = (seed_sheet(table, short, best) for short in (False, True))
    if full is None or compact is None:
        return None
    return _fullest(full, compact, ("MiB", *reversed(table.metrics[1:])), console)


def _fullest(full: Sheet, compact: Sheet, expendable: Sequence[str], console: Console) -> tuple[Sheet, RichTable]:
    """Take shorter numbers first, then less space, then fewer columns, of the ``expendable`` ones in their order.

    Cutting numbers off would change them, so columns go.
    """
    shorter = (compact.cut(expendable[:count]) for count in range(1, len(expendable) + 1))
    sheet, drawn = full, rich_table(full)
    for narrower, dense in chain([(compact, False), (compact, True)], ((sheet, True) for sheet in shorter)):
        if _fits(drawn, console):
            break
        sheet, drawn = narrower, rich_table(narrower, dense)
    return sheet, drawn


def rich_table(sheet: Sheet, dense: bool = False) -> RichTable:
    """Return the sheet for a terminal; ``dense``: with one space between columns."""
    drawn = RichTable(
        title=Text(sheet.title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0 if dense else (0, 1, 0, 0),
        pad_edge=False,
        show_edge=not dense,
    )
    name_width = max([_NAME_WIDTH, *(len(line.cells[0].text) for line in sheet.lines if not line.floor)])
    for number, heading in enumerate(sheet.headings):
        drawn.add_column(
            Text(heading.replace("_", "_\n").replace(" ↑", "↑").replace(" ↓", "↓")),
            justify="left" if number < sheet.lefts else "right",
            overflow="fold",
            max_width=None if number else name_width,
        )
    for line in sheet.lines:
        if line.section:
            drawn.add_section()
        drawn.add_row(*(_styled(cell) for cell in line.cells), style="dim" if line.floor else None)
    return drawn


def _styled(cell: Cell) -> Text:
    return Text(cell.text, style="bold green" if cell.best else "")


def _fits(table: RichTable, console: Console) -> bool:
    unbounded = console.options.update(width=10_000)
    return console.measure(table, options=unbounded).maximum <= console.width
