"""Ids of jobs of every kind are what they were: a store that somebody has stays readable, and nothing is made twice.

An id may change only with a ``version`` that says why; then run this file with PIN_IDS=1, which writes it again.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from dmqbench.config.ids import JobIds, job_ids
from dmqbench.config.model_facts import weights_hash
from dmqbench.launch.sweeps import check

PINNED = Path(__file__).with_name("pinned_ids.json")
CPU = "trainer.accelerator=cpu"  # the kind of device is part of an id
JOBS = [text.split(" ") for text in json.loads(PINNED.read_text())]


def ids_of(overrides: list[str]) -> JobIds:
    job = check([*overrides, CPU]).job
    return job_ids(job, weights_hash(job.model))


@pytest.mark.parametrize("overrides", JOBS, ids=" ".join)
def test_ids_are_pinned(overrides):
    found = json.loads(json.dumps(asdict(ids_of(overrides))))
    pinned = json.loads(PINNED.read_text())
    if os.environ.get("PIN_IDS"):
        PINNED.write_text(json.dumps(pinned | {" ".join(overrides): found}, indent=1) + "\n")
    assert found == pinned[" ".join(overrides)]


def test_jobs_of_every_kind_are_pinned():
    said = {word for job in JOBS for word in job}
    methods = {word for word in said if word.startswith("method=")}
    assert len(JOBS) >= 30
    assert len(methods) >= 8
    assert {"task_kind=restore", "task_kind=edit", "bits.scope=paper", "method.faithful=true"} <= said
