"""A store for jobs of many tests, which share what is equal: samples of full precision, trajectories, first stages."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shared") / "runs"
