"""A plug-in brings the study of its stage: its findings and figures stand on the page and among the pictures."""

import json

import pytest
from handmade_findings import SCALING, FindingsBench, scaling
from plugin_packages import METHOD_YAML, install, the_one

from dmqbench.results.page.document import page
from dmqbench.results.plots import pictures
from dmqbench.results.studies import studies

STUDY = """
from dataclasses import dataclass

from dmqbench.results.figure import Axis, Figure, Line, Panel
from dmqbench.results.studies.findings import StageFindings, number
from dmqbench.results.studies.study import of_stage


@dataclass(frozen=True)
class Nudge(StageFindings):
    stage = "nudge"
    error: float

    @classmethod
    def from_json(cls, found):
        return cls(number("error", found["error"]))

    def boundaries(self, calls):
        return [0, calls]

    @property
    def figures(self):
        line = Line("error", [0, 1], [self.error, self.error], "#000000")
        return {"nudged": Figure("How far scales were nudged", (Panel((line,), Axis("call"), Axis("error")),))}


STUDY = of_stage(Nudge)
"""
METHOD = METHOD_YAML.format(name="mine")


@pytest.fixture
def brought(site):
    """Installs a plug-in with this text as the study of its stage."""
    own = set(studies())

    def bring(text: str) -> set[str]:
        install(site, "mine", {"conf/method/mine.yaml": METHOD, "studies/nudge.py": text})
        assert the_one().problem is None
        studies.cache_clear()
        return set(studies()) - own

    yield bring
    studies.cache_clear()


def data_of(bench: FindingsBench) -> tuple[str, dict]:
    text = page(bench.root, bench.results())
    return text, json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_the_study_of_a_plug_in_is_shown_as_ours_are(brought, tmp_path):
    assert brought(STUDY) == {"nudge"}
    bench = FindingsBench(tmp_path / "runs")
    sound = bench.made("mine", "w4a4", 30.0, {"nudge": {"error": 0.5}, SCALING: scaling()})
    damaged = bench.made("mine", "w4a6", 30.0, {"nudge": {"error": -1.0}})
    text, data = data_of(bench)
    figures, problem = data["jobs"][sound]["figures"], data["jobs"][damaged]["problem"]
    assert figures.keys() == {"weights", "nudged"} and figures["nudged"]["data"][0]["y"] == [0.5, 0.5]
    assert "How far scales were nudged" in text
    assert data["jobs"][damaged]["figures"] == {} and "no findings of nudge: damaged" in problem
    drawn = pictures.draw(bench.root, bench.results(), bench.root / "report")
    assert "report-nudged.png" in {path.name for path in drawn}


@pytest.mark.parametrize(
    "text", ["def", "import nothing_of_this_name", "raise SystemError('no\\nluck')", "raise SystemExit(3)"]
)
def test_a_broken_study_is_left_out_in_one_line_and_the_page_is_written(brought, tmp_path, capsys, text):
    assert brought(text) == set()
    complaint = capsys.readouterr().err
    assert "plug-in mine: no study mine.studies.nudge" in complaint and complaint.count("\n") == 1
    bench = FindingsBench(tmp_path / "runs")
    bench.made("mine", "w4a4", 30.0, {"nudge": {"error": 0.5}, SCALING: scaling()})
    _, data = data_of(bench)
    [job] = data["jobs"].values()
    assert set(job["figures"]) == {"weights"}


def test_what_has_the_name_of_ours_or_is_no_study_changes_nothing(brought, site):
    (site / "mine" / "studies").mkdir(parents=True)
    (site / "mine" / "studies" / "equivalent_scaling.py").write_text(STUDY)
    ours = studies()[SCALING]
    assert brought("helper = 1") == set() and studies()[SCALING] is ours
