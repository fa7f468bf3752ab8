"""Models inside packages that need not be installed."""

import pytest

from dmqbench.models.folders import ModelError
from dmqbench.models.packaged.catalogue import packaged_folder


def require_package(name: str) -> None:
    """Skip a test, in one line, where the package with a model or its reader is not installed."""
    try:
        packaged_folder(name)
    except ModelError as error:
        pytest.skip(str(error))
