"""How much work is expected of jobs, and how meters and the course of all jobs follow it."""

import pytest

from dmqbench.config.ids import job_ids
from dmqbench.launch.expected import expected_work
from dmqbench.launch.sweeps import check, hash_once
from dmqbench.store.artifacts import Store


@pytest.fixture
def jobs(tmp_path):
    common = (f"store.root={tmp_path}", "bits=w4a6", "diagnose=false", "metrics.samples=10", "metrics.pairs=4")
    return [check([f"method={name}", *common]) for name in ("fp", "rtn", "q_diffusion", "accuquant")]


def test_a_part_that_jobs_share_is_the_first_ones_work(jobs):
    full, rtn, reconstructed, accumulated = expected_work(jobs)
    assert full == (10 + 4 + 10) * 20, "samples and both floors, 20 calls each"
    assert expected_work(jobs[1:])[0] > rtn > 0, "its reference is drawn already"
    assert reconstructed > rtn and accumulated > 0
    assert expected_work(jobs[2:3] * 2)[1] == 0


def test_what_the_store_has_is_no_work(jobs, tmp_path):
    [before], job, store = expected_work(jobs[:1]), jobs[0].job, Store(tmp_path)
    id = job_ids(job, hash_once(job.model)).samples
    store.append_file("samples", id, "chunk_00000.safetensors", lambda path: path.write_bytes(b"drawn"))
    assert before > 0 and expected_work(jobs[:1]) == [0]
