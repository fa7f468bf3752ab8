"""A sheet in Markdown."""

from collections.abc import Iterator

from dmqbench.results.sheets import Line, Sheet


def markdown(sheet: Sheet) -> str:
    """Return the sheet as a Markdown heading, table and notes."""
    ruler = [":--" if number < sheet.lefts else "--:" for number in range(len(sheet.columns))]
    rows = [[_in_markdown(heading) for heading in sheet.headings], ruler]
    rows += [[f"**{text}**" if best else text for text, best in _markdown_cells(line)] for line in sheet.lines]
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join([f"### {_in_markdown(sheet.title)}", body, *map(_in_markdown, sheet.notes)])


def _markdown_cells(line: Line) -> Iterator[tuple[str, bool]]:
    return ((_in_markdown(cell.text), cell.best) for cell in line.cells)


def _in_markdown(text: str) -> str:
    """Keep names from a store out of the table's own marks, and out of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
