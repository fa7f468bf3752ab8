"""Names stay text, whatever they look like: every path- or name-like key, on a command line and in a sweep file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from dmqbench import cli
from dmqbench.config.compose import ROOT, compose
from dmqbench.config.overrides import expand
from dmqbench.config.places import CONF
from dmqbench.config.texts import as_text, null_is_text, text_keys
from dmqbench.launch.sweeps import plan, sweep_jobs

NAMES = (
    *("1_0", "2024_01_05", "007", "0x10", "1e5", "1.50", "-1", "inf", "nan", "+3"),
    *("true", "False", "yes", "none", "[k]", "[a,b]", "{a: 1}", "(x)", "a(b)", "a b", " a", "a ", "a,b", "a=b", "=a"),
    *(
        "-dash",
        "--help",
        "größe",
        "日本",
        "it's",
        'say "so"',
        "a:b",
        "a#b",
        "a*?",
        "50%",
        "~home",
        "@here",
        "+plus",
        ".",
    ),
)
KEYS = (
    *("model.path", "model.name", "model.revision", "bits.plan", "dataset.name", "dataset.reference"),
    *("metrics.weights", "metrics.clip", "inputs.images", "store.root", "method.path", "method.variant"),
    *("evaluate.samples", "evaluate.fp_samples", "evaluate.name", "evaluate.prompts", "evaluate.bits"),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_name_or_path_keeps_it(name):
    keys = [key for key in KEYS if not key.startswith("method.")]
    assert {*KEYS} <= text_keys()
    overrides = [f"{key}={name}" for key in keys]
    config = compose(["method=foreign", f"method.path={name}", f"method.variant={name}", *overrides])
    assert {key: OmegaConf.select(config, key) for key in KEYS} == dict.fromkeys(KEYS, name)
    assert [read.value() for read in OverridesParser.create().parse_overrides([*map(as_text, overrides)])] == [
        name for _ in keys
    ]


def test_hydra_composes_the_names_too():
    """As it does for --cfg: every name in one of the keys."""
    keys = [key for key in KEYS if not key.startswith("method.")]
    for start in range(0, len(NAMES), len(keys)):
        chosen = dict(zip(keys, NAMES[start:], strict=False))
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra_compose(ROOT, [as_text(f"{key}={name}") for key, name in chosen.items()])
        assert {key: OmegaConf.select(config, key) for key in chosen} == chosen


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(name: str) -> None:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number in range(2):
            Image.fromarray(np.full((16, 16), 60 * number, np.uint8)).save(folder / f"{number}.png")

    return make


OPTIONS = ("task=evaluate", "evaluate.bits=w4a8", "metrics.names=[psnr]", "trainer=cpu")
FOLDERS = [name for name in NAMES if name not in (".", "--help")]


def planned(*arguments):
    return [one.job for one in plan(cli.parse_arguments(arguments))]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_read_by_its_name_from_a_command_line_and_from_a_sweep_file(folders, tmp_path, name):
    folders(name)
    keys = ("evaluate.samples", "evaluate.fp_samples", "evaluate.name")
    words = [f"{key}={name}" for key in keys]
    [job] = planned(*OPTIONS, *words)
    assert (job.evaluate.samples, job.evaluate.fp_samples, job.evaluate.name) == (name, name, name)
    assert sweep_jobs("mine", [written_sweep(tmp_path, words)]) == [[*OPTIONS, *words]]


def written_sweep(place, *jobs):
    """The folder for --config-dir in which the sweep ``mine`` has these jobs."""
    (place / "sweeps").mkdir()
    (place / "sweeps" / "mine.yaml").write_text(json.dumps({"overrides": list(OPTIONS), "jobs": jobs}))
    return str(place)


def test_names_of_a_sweep_file_are_those_of_its_jobs(folders, tmp_path):
    names = ("1_0", "it's", "a=b")
    for name in names:
        folders(name)
    jobs = [[f"evaluate.samples={name}", f"evaluate.fp_samples={name}"] for name in names]
    found = planned("--config-dir", written_sweep(tmp_path, *jobs), "+sweeps=mine")
    assert [(job.evaluate.samples, job.evaluate.fp_samples) for job in found] == [(name, name) for name in names]


@pytest.mark.parametrize("key", sorted(text_keys()))
def test_null_is_a_name_where_a_name_is_asked_for_and_elsewhere_nothing(key):
    """What may be left out takes null for that: paths, and what only some models or tasks have."""
    optional = {
        *(
            "model.path",
            "model.revision",
            "model.condition",
            "model.scheduler",
            "bits.plan",
            "dataset.reference",
            "metrics.weights",
        ),
        *("store.root", "inputs.images", "method.path", "evaluate.bits", "evaluate.prompts"),
        *("evaluate.samples", "evaluate.fp_samples", "inputs.prompts", "inputs.calibration_prompts"),
        *("inputs.column", "inputs.negative_prompt"),
    }
    method = ["method=foreign"] if key.startswith("method.") else []
    for text, expected in (("null", None if key in optional else "null"), ("'null'", "null"), ("./null", "./null")):
        assert OmegaConf.select(compose([*method, f"{key}={text}"]), key) == expected
    assert null_is_text(key) == (key not in optional)


def test_nothing_is_a_text_too():
    assert compose(["evaluate.fp_samples="]).evaluate.fp_samples == ""


def test_quotes_and_escapes_are_read_as_before():
    config = compose(["evaluate.name='1e5'", 'evaluate.samples="a,b"', r"evaluate.prompts=a\,b", "evaluate.bits=w4a8"])
    assert (config.evaluate.name, config.evaluate.samples, config.evaluate.prompts) == ("1e5", "a,b", "a,b")
    assert compose(["evaluate.name=${model.name}"]).evaluate.name == "digits"


def test_commas_part_values_with_m_alone():
    values = [OmegaConf.select(compose(one), "evaluate.name") for one in expand(["evaluate.name=1_0,a b,'c,d',[e,f]"])]
    assert values == ["1_0", "a b", "c,d", "[e,f]"]
    assert [compose(one).seed for one in expand(["seed=1,2", "evaluate.name=1e5"])] == [1, 2]
    assert [compose(one).evaluate.name for one in expand(["evaluate.name=choice(a,b)"])] == ["a", "b"]


def test_a_shown_configuration_has_the_text(capsys):
    assert cli.main(["--cfg", "job", "evaluate.name=1e5", "task=evaluate", "evaluate.samples=1_0"]) == 2
    assert "evaluate.samples=1_0" in capsys.readouterr().err


def test_a_list_that_is_a_name_is_told_as_a_path(capsys, tmp_path):
    assert cli.main([*OPTIONS, "evaluate.samples=[k]", f"store.root={Path(tmp_path)}"]) == 2
    line = capsys.readouterr().err
    assert "evaluate.samples=[k]" in line
    assert "word" not in line


@pytest.mark.parametrize("name", ["it's", "a b", "größe"])
def test_a_folder_of_own_yamls_and_a_store_may_have_any_name(tmp_path, name):
    folder = tmp_path / name
    (folder / "bits").mkdir(parents=True)
    (folder / "bits" / "mine.yaml").write_text("weight: 5\nactivation: 7\nscope: common\nranges: method\nplan: null\n")
    words = ["--config-dir", str(folder), "bits=mine", f"store.root={folder / 'runs'}", "task=cost"]
    [planned] = plan(cli.parse_arguments(words))
    assert (planned.job.bits.weight, planned.job.store_root) == (5, folder / "runs")
