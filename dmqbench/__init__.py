"""Quantization of diffusion models, measured: the command ``dmqbench``, and ``dmqbench.api`` for scripts.

What ``dmqbench.api`` has for scripts is handed on when it is asked for, so that what needs no torch imports none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmqbench.api import Conditions, Denoiser, evaluate, load, quantize_, save

__all__ = ["Conditions", "Denoiser", "evaluate", "load", "quantize_", "save"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
