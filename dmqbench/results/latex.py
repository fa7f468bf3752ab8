"""One comparable table as LaTeX, for ``booktabs``."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from dmqbench.results.sheets import Cell, Line, Sheet

PREAMBLE = "% needs \\usepackage{booktabs}"

_ESCAPES = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "†": r"\textdagger{}", "–": r"\textendash{}"},
    **{"[": "{[}", "]": "{]}", "`": "{`}", "'": "{'}", '"': "{''}"},
    **{"±": r"\ensuremath{\pm}", "×": r"\ensuremath{\times}", "·": r"\ensuremath{\cdot}", "−": r"\ensuremath{-}"},
    **{"↑": r"\ensuremath{\uparrow}", "↓": r"\ensuremath{\downarrow}"},
    **{"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}"},
}
"""Brackets, because one after ``\\`` is read as its argument; quotes, because two of them become another letter."""

_ACCENTS = dict(
    zip("\u0300\u0301\u0302\u0303\u0308\u0304\u0307\u0306\u030c\u030b\u030a\u0327", "`'^~\"=.uvHrc", strict=True)
)

_SCIENTIFIC = re.compile(r"(?<![\w.])(-?[\d.]+)e(-?\d+)(?!\w)")


def latex(sheet: Sheet, protocols: Iterable[str] = ()) -> str:
    """Return the sheet as a ``table``: its notes are the caption, the protocol ids of its columns are comments."""
    alignment = "l" * sheet.lefts + "r" * (len(sheet.columns) - sheet.lefts)
    caption = ". ".join([escape(sheet.title), *(escape(note) for note in sheet.notes)])
    return "\n".join(
        [
            *(f"% {_one_line(protocol)}" for protocol in protocols),
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{caption}.}}",
            rf"  \begin{{tabular}}{{{alignment}}}",
            r"    \toprule",
            f"    {_row([escape(heading) for heading in sheet.headings])}",
            r"    \midrule",
            *_body(sheet.lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def escape(text: str) -> str:
    """Return ``text`` in ASCII so that LaTeX prints it; letters its usual fonts lack become their code point."""
    return re.sub("-(?=-)", "-{}", "".join(map(_escaped, text)))


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if letter.isspace() or not letter.isprintable():
        return " "
    if letter.isascii():
        return letter
    base, mark = (*unicodedata.normalize("NFD", letter), "")[:2]
    known = base.isascii() and mark in _ACCENTS and len(unicodedata.normalize("NFD", letter)) == 2
    return f"\\{_ACCENTS[mark]}{{{base}}}" if known else f"(U+{ord(letter):04X})"


def _body(lines: Sequence[Line]) -> Iterable[str]:
    for line in lines:
        if line.section:
            yield r"    \addlinespace"
        yield f"    {_row([_cell(cell, line.floor) for cell in line.cells])}"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell, floor: bool) -> str:
    text = _numbers(cell.text)
    if not text:
        return ""
    if cell.best:
        return rf"\textbf{{{text}}}"
    return rf"\textit{{{text}}}" if floor else text


def _numbers(text: str) -> str:
    """Escape a cell, writing 1.2e-5 as a product with a power of ten."""
    parts = _SCIENTIFIC.split(text)
    written = [escape(parts[0])]
    for mantissa, power, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        written.append(rf"\ensuremath{{{mantissa}\times 10^{{{int(power)}}}}}" + escape(rest))
    return "".join(written)


def _one_line(text: str) -> str:
    return " ".join("".join(letter if " " <= letter <= "~" else " " for letter in text).split())
