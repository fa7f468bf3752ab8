"""How much of a batch is computed at once: what is computed stays the same but for the order of sums."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dmqbench.models.hooks import Reached
from dmqbench.quant.context import StepContext


@dataclass(frozen=True)
class Portions:
    """What is done to hold less memory at once, at the price of time."""

    samples: int | None = None
    """So many samples go through the network or a unit together; None: the whole batch."""
    recomputed: tuple[str, ...] = ()
    """Modules that are computed again in a backward pass through the network, instead of keeping what it needs."""
    moved: bool = False
    """Whether what is kept of units lies elsewhere: of a GPU in the host's memory, of a CPU in a file."""
    offloaded: bool = False
    """Whether the weights of layers lie there too, but while a layer computes."""

    def text(self, on_gpu: bool) -> str:
        """What is done, in words; "" if nothing is."""
        where = "the host's memory" if on_gpu else "a file"
        said = {
            f"weights kept in {where}": self.offloaded,
            f"inputs kept in {where}": self.moved,
            "blocks computed again": bool(self.recomputed),
            f"{self.samples} samples at once": self.samples is not None,
        }
        return ", ".join(words for words, done in said.items() if done)

    def split(self, index: Tensor) -> tuple[Tensor, ...]:
        """Cut a batch of indices [B] into portions."""
        return index.split(self.samples or max(1, len(index)))


WHOLE = Portions()


def in_portions(
    portions: Portions, context: StepContext, network: nn.Module, compute: Callable[..., Tensor], batched: Any
) -> Tensor:
    """Return ``compute(batched)``, portion by portion and one behind the other.

    With gradients a portion is computed again in the backward pass, so that one at a time is held. A forward pass that
    hooks end early is ended so for every portion.

    Args:
        network: what ``compute`` calls; holds the modules that are recomputed.
        batched: a tree of tensors, all of leading size B.
    """
    size = len(tree_leaves(batched)[0])
    step = portions.samples or size

    def portion(part: Any) -> Tensor:
        with recomputed(network, portions.recomputed, context):
            return compute(part)

    if size <= step:
        return portion(batched)
    outputs: list[Tensor] = []
    ended = False
    for start in range(0, size, step):
        part = tree_map(lambda tensor, start=start: tensor[start : start + step], batched)
        try:
            outputs.append(context.checkpoint(portion, part) if torch.is_grad_enabled() else portion(part))
        except Reached:  # kept itself, it would keep the frames of the call, and with them all that is computed there
            ended = True
    if ended:
        raise Reached
    return torch.cat(outputs)


@contextmanager
def recomputed(network: nn.Module, names: tuple[str, ...], context: StepContext) -> Iterator[None]:
    """Let the modules ``names`` be computed again in the backward passes of what is computed within, each at the step
    at which it first ran; their hooks see the first time alone."""
    modules = [network.get_submodule(name) for name in names] if torch.is_grad_enabled() else []
    before = [(vars(module), vars(module).get("forward")) for module in modules]
    for module in modules:
        vars(module)["forward"] = _again(module.forward, context)
    try:
        yield
    finally:
        for own, forward in before:
            if forward is None:  # its class has it again
                del own["forward"]
            else:
                own["forward"] = forward


def _again(forward: Callable[..., Any], context: StepContext) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return context.checkpoint(forward, *args, **kwargs)

    return run
