"""What every test runs under: one thread, no downloads, and only what the machine can do."""

import gc
import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

# Before torch is imported: two threads on a busy machine wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from examples import EXAMPLES
from hypothesis import settings

# A busy machine is slow, which is no mistake of what is tested.
settings.register_profile("dmqbench", max_examples=EXAMPLES, deadline=None)
settings.load_profile("dmqbench")

# What is forced to the disk outlives a cut of the power, which no test brings about: 4 ms each, 30 times a job.
os.fsync = lambda descriptor: None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import what is tested without looking for garbage: what imports leave stays, and is looked through no more."""
    gc.disable()
    found = yield
    gc.freeze()
    gc.enable()
    return found


BEGIN_WITH = ("e2e", "notebooks", "tracking")
"""Folders whose files take longest: a worker that had one of them last would leave the others idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, and skip the tests marked ``gpu`` where there is none.

    Torch is imported only if one of these was selected.
    """
    items.sort(key=lambda item: item.path.parent.name not in BEGIN_WITH)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Spare the small networks and short stages of tests what libraries look up for each anew."""
    if (modeling := sys.modules.get("diffusers.models.modeling_utils")) is not None:
        _ask_no_module_for_hooks(modeling)
    connector: Any = sys.modules.get("pytorch_lightning.trainer.connectors.callback_connector")
    if connector is not None:  # in the metadata of every package that is installed
        connector._load_external_callbacks = cache(connector._load_external_callbacks)


def _ask_no_module_for_hooks(modeling: Any) -> None:
    """Spare networks a search of all their modules for hooks in every call, a tenth of the time of tiny ones."""
    thorough = modeling.get_parameter_dtype

    def first_dtype(module: Any) -> Any:
        mixed = getattr(module, "_keep_in_fp32_modules", None)
        found = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
        return thorough(module) if mixed else next(found, None) or thorough(module)

    modeling.get_parameter_dtype = first_dtype


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path of imports, in which tests put plug-ins."""
    from plugin_packages import forget_plugins

    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    before = set(sys.modules)
    yield place
    forget_plugins()
    packages = {path.name for path in place.iterdir()}
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in packages:
            del sys.modules[name]
