"""One workspace for a store; and one line, soon, for whatever keeps it from being saved."""

import json
import threading
from importlib.util import find_spec

import pytest
from loopback import KEY, serving, silence
from PIL import Image
from processes import with_wandb_imported

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.tracking.dashboards import Contents, contents_of, workspace_of
from dmqbench.tracking.record import Record, curve

needs_workspaces = pytest.mark.skipif(find_spec("wandb_workspaces") is None, reason="an optional extra")
JOBS = ("0123456789abcdef", "fedcba9876543210")
PUSH = """
    import sys
    from pathlib import Path
    from rich.console import Console
    from dmqbench.tracking.push import push
    sys.exit(push(Path(sys.argv[1]), Console()))
    """


class Part:
    """Stands for a mirror: what is logged meanwhile belongs to its part."""

    def __init__(self, part):
        self.part = part

    def follow(self):
        """Mirror nothing."""


@pytest.fixture
def root(tmp_path):
    """A store with the records of two jobs."""
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    for number, job in enumerate(JOBS):
        with Record.of_job(tmp_path, job) as record:
            config = {"method": {"name": "rtn"}, "bits": {"weight": 4 * (number + 1), "activation": 8}}
            record.log("job", config=config, ids={"result": job}, tags=["rtn", "digits", f"w{4 * (number + 1)}a8"])
            record.attach(Part("calibration"))
            record.log("curve", **curve("loss/weight_reconstruction", "iteration", [0, 9], {"mid.0": [2.0, 1.0]}))
            record.log("end", exit_code=0)
            record.detach()
            record.attach(Part("evaluation"))
            record.log("metrics", psnr=30.0 + number, fd=5.0)
            record.log("curve", **curve("error", "call", [0, 1], {"accumulated": [0.0, 0.1], "local": [0.1]}))
            record.log("image", name="samples", path="grid.png", caption="")
            record.log("summary", values={"cost": {"bops": 10, "size_mib": {"all_layers": 3.5, "packed": None}}})
            record.log("end", exit_code=0)
            record.detach()
    return tmp_path


def records(root):
    return sorted((root / "records").glob("*.jsonl"))


CONTENTS = Contents(
    metrics=("metrics/psnr", "metrics/fd"),
    costs=("cost/size_mib/all_layers", "cost/bops"),
    losses=("loss/weight_reconstruction",),
    errors=("error/accumulated", "error/local"),
    pictures=("samples",),
)


def test_the_records_say_what_there_is_to_show(root):
    assert contents_of(records(root)) == CONTENTS
    assert contents_of([]) == Contents((), (), (), (), ())


def spec_of(workspace):
    """The workspace as it is saved, through JSON."""
    return json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))["spec"]["section"]


@needs_workspaces
def test_the_workspace_has_a_panel_for_every_name_and_groups_methods_by_bits():
    spec = spec_of(workspace_of(CONTENTS, "me", "dmqbench"))
    sections = {section["name"]: section["panels"] for section in spec["panelBankConfig"]["sections"]}
    panels = [panel for section in sections.values() for panel in section]
    bars = [panel["config"]["metrics"] for panel in panels if panel["viewType"] == "Bar Chart"]
    assert bars == [["metrics/psnr"], ["metrics/fd"]]
    scatters = {(panel["config"]["xAxis"], panel["config"]["yAxis"]) for panel in sections["Quality against cost"]}
    assert scatters == {
        (f"summary:{cost}", f"summary:{metric}") for cost in CONTENTS.costs for metric in CONTENTS.metrics
    }
    lines = {panel["config"]["xAxis"] for panel in panels if panel["viewType"] == "Run History Line Plot"}
    assert lines == {"error/call", "loss/weight_reconstruction/iteration"}
    (media,) = [panel for panel in panels if panel["viewType"] == "Media Browser"]
    assert media["config"]["mediaKeys"] == ["samples"]
    (runs,) = spec["runSets"]
    assert [group["name"] for group in runs["grouping"]] == [
        "bits.value.weight",
        "bits.value.activation",
        "method.value.name",
    ]


@needs_workspaces
def test_what_a_store_has_not_gets_no_section():
    spec = spec_of(workspace_of(Contents(("metrics/psnr",), (), (), (), ()), "me", "dmqbench"))
    assert [section["name"] for section in spec["panelBankConfig"]["sections"]] == ["Metrics"]


def pushed(root, **environment):
    done = with_wandb_imported(PUSH, root, COLUMNS="200", **environment)
    return done.returncode, done.stdout.splitlines(), done.stderr


@needs_workspaces
def test_a_push_uploads_every_job_and_a_second_one_changes_nothing(root):
    with serving() as server:
        environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.address}
        status, lines, errors = pushed(root, **environment)
        assert (status, errors) == (0, "")
        assert [line.rpartition(": ")[2] for line in lines[:4]] == [
            *("2 of 2 rows were new", "4 of 4 rows were new"),
            *("2 of 2 rows were new", "4 of 4 rows were new"),
        ]
        assert set(server.runs) == {f"{job}-{part}" for job in JOBS for part in ("calibration", "evaluation")}
        before = {run: list(found["history"]) for run, found in server.runs.items()}
        ((name, view),) = server.views.items()
        assert lines[4].startswith("workspace: ") and name.split("-")[1] in lines[4]
        status, lines, _ = pushed(root, **environment)
        assert status == 0 and all(" 0 of " in line for line in lines[:4])
        assert {run: found["history"] for run, found in server.runs.items()} == before
        assert set(server.views) == {name}
        assert json.loads(server.views[name]["spec"])["section"]["panelBankConfig"]["sections"]
        assert view["entityName"] == "me" and view["projectName"] == "dmqbench"


def one_line(root, **environment):
    status, lines, errors = pushed(root, **environment)
    assert status == 1 and errors == ""
    (line,) = lines
    assert line.startswith("dmqbench-report: ")
    return line


def test_without_a_key_one_line_says_what_to_do(root):
    assert "wandb login" in one_line(root)


def test_an_expired_key_is_one_line(root):
    with serving(refusing=True) as server:
        line = one_line(root, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.address)
    assert "invalid api key" in line and KEY not in line


@pytest.mark.parametrize("role", ["server", "proxy"])
def test_what_hangs_is_left_with_one_line(root, role):
    with silence() as address:
        hanging = {"WANDB_BASE_URL": address} if role == "server" else {"HTTPS_PROXY": address, "HTTP_PROXY": address}
        line = one_line(root, WANDB_API_KEY=KEY, WANDB_HTTP_TIMEOUT="2", **hanging)
    assert "does not answer" in line


@needs_workspaces
def test_a_server_that_hangs_at_the_workspace_is_left_with_one_line(root):
    soon = PUSH.replace("sys.exit", "import dmqbench.tracking.push as d; d._SAVE_S = 2\n    sys.exit")
    with serving() as server:
        over = threading.Event()
        server._UpsertView2 = lambda _: over.wait(60)
        done = with_wandb_imported(soon, root, COLUMNS="200", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.address)
        over.set()
        assert done.returncode == 1 and len(server.runs) == 4
    assert "the workspace was not saved (TimeoutError" in done.stdout.splitlines()[-1]


def test_without_the_extra_the_runs_are_there_and_one_line_says_what_is_missing(root):
    absent = PUSH.replace(
        "sys.exit", "import dmqbench.tracking.push as d; d.find_spec = lambda name: None\n    sys.exit"
    )
    with serving() as server:
        done = with_wandb_imported(absent, root, COLUMNS="200", WANDB_API_KEY=KEY, WANDB_BASE_URL=server.address)
        assert done.returncode == 1 and len(server.runs) == 4
    assert "pip install dmqbench[dashboards]" in done.stdout.splitlines()[-1]


def test_an_empty_store_is_one_line(tmp_path):
    status, (line,), _ = pushed(tmp_path)
    assert status == 2 and "run a job first" in line


def test_what_the_dashboard_groups_by_is_in_the_configuration_of_a_job():
    config = make_job(compose(["method=rtn"])).config
    assert {"weight", "activation"} <= config["bits"].keys()
    assert "name" in config["method"]
