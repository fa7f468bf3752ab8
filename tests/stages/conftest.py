"""What AccuQuant's stage is tested under."""

import math

import pytest
import torch

from dmqbench.stages import trajectory_settings


@pytest.fixture
def one_thread_and_any_rate(monkeypatch):
    """Sums must be split alike in runs that are compared to the bit; a few iterations must move something."""
    monkeypatch.setattr(trajectory_settings, "LARGEST_RATE", math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
