"""The peak of memory, part by part."""

import numpy as np
import pytest

from dmqbench.tracking.environment import PeakMemory, give_back_freed_memory, memory_facts, reset_peak_memory

MIB = 128


@pytest.fixture
def memory():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pytest.skip("this system cannot reset its peak of memory")
    return PeakMemory()


def hold(mib: int) -> None:
    """Hold that much memory for a moment, which the system takes back at once."""
    np.ones(mib << 17)


def test_a_part_has_a_peak_of_its_own_and_the_whole_the_largest(memory):
    memory.begin_part()
    small = memory_facts("cpu")["peak_memory_mib"]
    hold(MIB)
    large = memory_facts("cpu")["peak_memory_mib"]
    assert large - small == pytest.approx(MIB, rel=0.1)
    memory.begin_part()
    assert memory_facts("cpu")["peak_memory_mib"] < large - MIB / 2
    assert memory.total_mib == large
    memory.begin_part()
    assert memory.total_mib == large


def test_a_part_on_the_cpu_says_nothing_of_another_device():
    assert memory_facts("cpu").keys() == {"peak_memory_mib"}


def test_what_lies_between_blocks_in_use_is_given_back(memory):
    blocks = [
        bytes([number % 256]) * 100_000 for number in range(2000)
    ]  # too small to be taken from the system one by one
    before = memory_facts("cpu")["peak_memory_mib"]
    del blocks[:-1]
    give_back_freed_memory()
    reset_peak_memory()
    assert before - memory_facts("cpu")["peak_memory_mib"] > 150
    assert len(blocks[0]) == 100_000
