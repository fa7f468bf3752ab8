"""Jobs, their ids and their refusals, by overrides."""

import pytest

from dmqbench.config.checked_job import Job
from dmqbench.config.compose import compose
from dmqbench.config.errors import ConfigError
from dmqbench.config.ids import JobIds, job_ids
from dmqbench.config.job import make_job

WEIGHTS = "0" * 64


def job(*overrides: str) -> Job:
    return make_job(compose(overrides))


def ids_of(*overrides: str) -> JobIds:
    return job_ids(job(*overrides), WEIGHTS)


def refused(*overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        job(*overrides)
    assert "\n" not in str(caught.value)
    return caught.value
