"""Looking into a network while it runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Reached(Exception):
    """Raised by a hook: the rest of the forward pass is not needed."""


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module], hook: Callable[..., Any], *, pre: bool = False, with_kwargs: bool = False
) -> Iterator[None]:
    """Call ``hook(name, module, args, …)`` whenever one of ``modules`` runs, for as long as the context lasts.

    Args:
        hook: is given the output as well, unless ``pre``; what it returns takes the place of the output, or of the
            arguments, unless it is None.
        pre: call it before the module runs.
        with_kwargs: give it the keyword arguments behind ``args``.
    """
    with ExitStack() as hooks:
        for name, module in modules.items():
            register = module.register_forward_pre_hook if pre else module.register_forward_hook
            hooks.callback(register(partial(hook, name), with_kwargs=with_kwargs).remove)
        yield


def output_tensors(output: Any) -> tuple[Tensor, ...]:
    """The features that a module puts out, one of each stream, whatever it wraps them in."""
    return tuple(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
