import json
import re
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from dmqbench import doctor
from dmqbench.config.metric_facts import OWN_METRICS
from dmqbench.config.schema import MetricsConfig
from dmqbench.doctor import findings, main
from dmqbench.eval.weights import INCEPTION_SCRIPT, INCEPTION_STATE, LPIPS_BACKBONE_FILES, WEIGHT_FILES
from dmqbench.launch import machine_checks, model_checks
from dmqbench.launch.findings import ABSENT, BROKEN, OK
from dmqbench.launch.model_checks import weight_file
from dmqbench.models.families import families

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with nothing on it but the installed packages."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DMQBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def found(group, weights=None):
    return {one.name: one for one in findings(weights) if one.group == group}


def test_a_bare_machine_is_healthy_and_every_metric_is_told(tmp_path, capsys):
    assert main(["--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["healthy"] is True
    rows = {(one["group"], one["name"]): one for one in answer["findings"]}
    assert {name for group, name in rows if group == "metrics"} == set(OWN_METRICS)
    for name in OWN_METRICS:
        computable = name in ("psnr", "ssim", "mse", "psnr_truth", "fd_digits", "fd2fp32_digits")
        computable = computable or name.endswith("_effnet")  # whose packages the tests need
        assert rows["metrics", name]["status"] == (OK if computable else ABSENT), name
    for file in WEIGHT_FILES:
        row = rows["weights", file.name]
        assert (row["facts"]["sha256"], row["facts"]["bytes"]) == (file.sha256, file.size_bytes)
        assert file.url in row["advice"] and str(tmp_path / "torch") in row["detail"]
    assert rows["models", "digits"]["status"] == OK
    assert rows["store", "run store"]["facts"]["root"] == str(tmp_path / "runs")
    assert not list(tmp_path.iterdir()), "it writes nothing"


def test_the_table_says_the_same(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([]) == 0
    shown = capsys.readouterr().out
    for one in findings():
        assert re.search(rf"{one.status} +([^:]+, )?{re.escape(one.name)}(, [^:]+)?: ", shown), one
    assert "Nothing that a job needs is broken" in shown


def test_the_table_fits_two_screens_breaks_no_address_and_names_classes(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert sum(1 + (len(line) - 1) // 80 for line in lines) <= 2 * 30
    for file in WEIGHT_FILES:
        assert any(file.url in line for line in lines), file.url
    assert all(len(line) <= 80 or "https://" in line or str(tmp_path) in line for line in lines)
    assert all(re.search(rf"your own: .*{family.network}", shown, re.DOTALL) for family in families())


@pytest.mark.parametrize(
    ("metric", "settings", "expected"),
    [
        ("psnr", {}, None),
        ("lpips", {"lpips": "vgg"}, LPIPS_BACKBONE_FILES["vgg"]),
        ("fid", {"inception": "clean"}, INCEPTION_SCRIPT),
        ("kid", {"inception": "adm"}, INCEPTION_STATE),
        ("sfid", {"inception": "clean"}, INCEPTION_STATE),
    ],
)
def test_which_file_a_metric_needs(metric, settings, expected):
    assert weight_file(metric, MetricsConfig(names=(), pairs=1, samples=1, **settings)) == expected


def test_a_folder_of_weights_is_looked_into_and_a_wrong_file_is_told(tmp_path):
    (tmp_path / INCEPTION_SCRIPT.name).write_bytes(b"something else")
    weights = found("weights", str(tmp_path))
    assert weights[INCEPTION_SCRIPT.name].status == ABSENT
    assert "is not the published file" in weights[INCEPTION_SCRIPT.name].detail
    assert found("metrics", str(tmp_path))["fid"].status == ABSENT
    (tmp_path / "STAND-IN").touch()
    assert found("weights", str(tmp_path))[INCEPTION_SCRIPT.name].status == OK
    assert found("metrics", str(tmp_path))["fid"].status == OK


@pytest.mark.parametrize(
    ("variables", "mode", "keyed"),
    [
        ({}, "offline", False),
        ({"WANDB_API_KEY": SECRET}, "online", True),
        ({"WANDB_API_KEY": SECRET, "WANDB_MODE": "disabled"}, "disabled", True),
        ({"WANDB_MODE": "online", "WANDB_BASE_URL": f"https://user:{SECRET}@wandb.example"}, "online", False),
    ],
)
def test_wandb_is_told_without_its_key(variables, mode, keyed, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wandb = found("tracking")["wandb"]
    assert wandb.facts["mode"] == mode and wandb.facts["has_key"] is keyed
    monkeypatch.setenv("COLUMNS", "500")
    for form in ("json", "table"):
        main(["--format", form])
        shown = capsys.readouterr().out
        assert SECRET not in shown and mode in shown


def test_a_store_that_cannot_be_written_is_broken(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DMQBENCH_RUNS", str(tmp_path / "file" / "runs"))
    store = found("store")["run store"]
    assert store.status == BROKEN and "cannot be written" in store.detail and "DMQBENCH_RUNS" in store.advice
    assert main([]) == 1
    assert "broken: run store" in capsys.readouterr().out


def test_missing_and_old_packages(monkeypatch):
    def version(name):
        if name == "wandb":
            raise PackageNotFoundError(name)
        return {"scipy": "1.99", "hydra-joblib-launcher": "1.2.0"}.get(name, "7.7")

    stated = ["scipy<1.18", "wandb>=0.31", "numpy", "hydra-joblib-launcher>=1.2; extra == 'joblib'"]
    about = type("About", (dict,), {"get_all": lambda self, name: ["joblib"]})({"Requires-Python": ">=99"})
    monkeypatch.setattr(machine_checks, "version", version)
    monkeypatch.setattr(machine_checks, "requires", lambda name: stated)
    monkeypatch.setattr(machine_checks, "metadata", lambda name: about)
    packages = found("packages")
    assert packages["scipy"].status == packages["wandb"].status == packages["dmqbench"].status == BROKEN
    assert packages["scipy"].detail == "scipy is 1.99, needed is <1.18"
    assert packages["wandb"].detail == "wandb is not installed"
    assert "'scipy<1.18'" in packages["scipy"].advice
    assert packages["required"].detail == "1 of 3 as needed"
    assert packages["[joblib]"].status == OK
    assert found("launchers")["joblib"].status == OK


def test_gpus_are_told_with_their_memory(monkeypatch):
    About = namedtuple("About", ("name", "total_memory"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: About("H100", 80 * 2**30))
    machine = found("machine")
    assert machine["cuda:0"].detail == "H100, 80 GiB"
    assert "gpu" not in machine


def test_a_torch_that_cannot_be_imported_is_broken_and_the_rest_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    machine = found("machine")
    assert machine["torch"].status == BROKEN
    assert found("store")["run store"].status == OK


def test_a_damaged_embedded_model_is_broken(tmp_path, monkeypatch):
    folder = tmp_path / "weights" / "digits" / "unet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr("dmqbench.models.folders.EMBEDDED", tmp_path / "weights")
    monkeypatch.setattr(model_checks, "EMBEDDED", tmp_path / "weights")
    assert found("models")["digits"].status == BROKEN
    assert found("metrics")["fd_digits"].status == BROKEN


def test_a_check_that_fails_is_a_finding():
    def check():
        raise RuntimeError("two\nlines")
        yield

    [finding] = doctor._guarded("group", check)
    assert (finding.status, finding.detail) == (BROKEN, "RuntimeError: two lines")


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--format", "xml"])
    assert stop.value.code == 2
    assert "table" in capsys.readouterr().err


def test_the_store_is_counted(tmp_path):
    folder = tmp_path / "runs" / "result" / ("0" * 16)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert "1 results" in found("store")["run store"].detail
    assert Path(found("store")["run store"].facts["root"]) == tmp_path / "runs"
