"""The rehearsal at full size, of which only the parts that watch and read are quick."""

import pytest
from e2e.commands import TINY, dmqbench
from twins import CLASSES_AS_TOKENS, save_twin

from benchmarks.full_size import PARTS, Rehearsal, markdown, planned
from benchmarks.processes import watched

HOLDS = "import time; held = bytearray(200 * 2**20); print('held', flush=True); time.sleep({})"


def test_a_process_is_watched_and_ended(tmp_path):
    log = tmp_path / "log.txt"
    seen = watched(HOLDS.format(0.3), [], log)
    assert seen.status == 0 and 200 < seen.peak_mib < 300 and seen.seconds < 10
    assert watched(HOLDS.format(60), [], log, killed_when=lambda: "held" in log.read_text()).status == -9
    with pytest.raises(MemoryError, match="log held"):
        watched(HOLDS.format(60), [], log, most_mib=100)


def test_the_plan_is_read_as_it_is_printed(tmp_path):
    status, output, errors = dmqbench(tmp_path, *TINY, "task=plan", "method=rtn", "bits=w4a8")
    assert status == 0, errors
    phases = planned(output)
    assert [*phases][:2] == ["loading", "trajectories"] and "weight_range" in phases
    assert all(0.5 < size < 2 for size in phases.values())


@pytest.mark.slow
def test_a_tiny_model_is_rehearsed_and_not_twice(tmp_path):
    save_twin(CLASSES_AS_TOKENS, tmp_path / "model")
    sizes = ("model.classes=10", "budget.weight_iterations=4000")
    rehearsal = Rehearsal("local", tmp_path, more=sizes)
    rehearsal.carry_out()
    rows = list(rehearsal.rows())
    stages = {row.phase for row in rows}
    assert {"loading", "samples", "`weight_range` of rtn", "`weight_reconstruction` of dmq"} < stages
    assert all(row.planned > 0.5 and row.measured > 0.5 and row.seconds > 0 for row in rows)
    assert markdown("tiny", rows).count("\n") == len(rows) + 1
    assert rehearsal.seen.keys() == PARTS.keys() - {"prompts"}
    again = Rehearsal("local", tmp_path, more=sizes)
    again.carry_out()
    assert again.seen == rehearsal.seen
