"""A pipeline that is quantized once, and its folder."""

import shutil
from pathlib import Path

import pytest
from served import quantized

from dmqbench.models.quantized import save


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def shared(store):
    """Quantized once with ranges shared by all steps; tests that change it take a copy."""
    return quantized(store)


@pytest.fixture(scope="session")
def saved(shared, tmp_path_factory) -> Path:
    """The folder of ``shared``; tests that damage it take a copy."""
    return save(shared, tmp_path_factory.mktemp("saved") / "pipeline")


@pytest.fixture
def damaged(saved, tmp_path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    return folder
