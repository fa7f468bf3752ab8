import re
import shutil
import subprocess

import pytest
from handmade import Bench
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.results import formats
from dmqbench.results.latex import escape, latex
from dmqbench.results.sheets import Cell, Line, Sheet

SPECIAL = "&%$#_{}~^\\"
COMMANDS = re.compile(r"\\(?:[A-Za-z]+|[^A-Za-z])")


def sheet(name: str, note: str = "n: 256") -> Sheet:
    lines = (
        Line((Cell(name), Cell("33.05±0.10", best=True), Cell("4.1e-5±2e-6"))),
        Line((Cell("floor"), Cell("72.1"), Cell("")), section=True, floor=True),
    )
    return Sheet(f"table of {name}", (name, "psnr", "mse"), 1, lines, (note, "quantization is simulated"))


def compilable(text: str) -> bool:
    """Whether braces and environments balance and no special letter stands for itself: what stops LaTeX."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    depth = 0
    for part in re.findall(r"\\[A-Za-z]+|\\.|[{}]", body):
        depth += {"{": 1, "}": -1}.get(part, 0)
        if depth < 0:
            return False
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", body) for word in ("begin", "end"))
    bare = COMMANDS.sub("", body).replace("{", "").replace("}", "")
    rows = [line for line in bare.splitlines() if "&" in line]
    plain = bare.replace("&", "").replace("10^", "")
    return (
        depth == 0
        and begun == ended[::-1]
        and len({row.count("&") for row in rows}) == 1
        and not set(plain) & set("%$#_~^")
    )


def test_a_table_has_the_rules_of_booktabs_its_best_bold_and_its_notes_as_caption():
    text = latex(sheet("q_diffusion"), ["psnr/1 tool=dmqbench n=256 #01234567"])
    assert compilable(text)
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\textbf{33.05\ensuremath{\pm}0.10}" in text
    assert r"\ensuremath{4.1\times 10^{-5}}\ensuremath{\pm}\ensuremath{2\times 10^{-6}}" in text
    caption = next(line for line in lines if line.startswith(r"\caption"))
    assert "n: 256" in caption and "simulated" in caption and r"q\_diffusion" in caption
    assert lines[0] == "% psnr/1 tool=dmqbench n=256 #01234567"


@given(st.text(max_size=30))
def test_any_name_gives_ascii_that_compiles(name):
    text = latex(sheet(name, note=name), [name])
    assert text.isascii()
    assert compilable(text)


@given(st.text(alphabet=st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), max_size=30))
def test_ascii_is_printed_as_it_stands(name):
    """Undoing the escapes, written down independently, gives the name back."""
    words = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">"}
    text = re.sub(r"\\(text\w+){}", lambda found: {**words, "textbar": "|"}[found[1]].join("\0\0"), escape(name))
    text = text.replace("{''}", '"').replace("-{}", "-")
    text = re.sub(r"{(['`\[\]])}", r"\1", text)
    assert re.sub(r"\\([&%$#_{}])", r"\1", text).replace("\0", "") == name


@pytest.mark.parametrize(
    ("name", "written"), [("é", r"\'{e}"), ("ö", r"\"{o}"), ("模", "(U+6A21)"), ("a--b", "a-{}-b")]
)
def test_letters_beyond_ascii(name, written):
    assert escape(name) == written


def test_a_store_as_latex_says_protocol_n_floors_and_that_it_is_simulated(tmp_path):
    bench = Bench(tmp_path / "runs")
    bench.job("rtn", "w4a6", 29.44)
    bench.job("rtn", "w3a6", 22.94)
    text = formats.as_latex(bench.results())
    assert text.startswith("% needs \\usepackage{booktabs}")
    assert "% psnr/1 tool=dmqbench" in text and "numerical floor" in text and "simulated" in text and "n: 256" in text
    assert compilable(text)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_it_compiles(tmp_path):
    body = latex(sheet(SPECIAL + "é [x] 模 <|>\"'`"))
    document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{body}\\end{{document}}"
    (tmp_path / "a.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
