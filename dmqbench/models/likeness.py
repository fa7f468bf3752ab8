"""Whether a network in memory is the one that its configuration and weights describe, which is what is calibrated."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dmqbench.models.adapter import Adapter
from dmqbench.models.folders import ModelError
from dmqbench.models.hooks import hooked
from dmqbench.models.sources import meta_model, require_finite
from dmqbench.quant.functional import is_narrow

PROBES = 4
"""States that both networks see, at timesteps over the whole schedule."""

TOLERANCE, NARROW_TOLERANCE = 1e-4, 0.05
"""Of the largest output: other kernels round differently, and no change that is meant is so small; of networks in fewer
bits than float32, the second."""

_ADVICE = "what was changed in memory is in no file: take it back, or merge it into the weights"


def require_as_configured(network: Any, title: str) -> None:
    """Refuse modules and tensors other than those that the configuration makes, and weights that are not finite.

    Args:
        title: of the network, for messages.
    """
    made = meta_model({**network.config, "_class_name": type(network).__name__})
    for facts in (_classes, _shapes):
        here, there = facts(network), facts(made)
        for name in (*there, *here):
            if here.get(name) != there.get(name):
                found, expected = here.get(name, "missing"), there.get(name, "nothing")
                raise ModelError(f"{title}.{name} is {found}, where its configuration makes {expected}: {_ADVICE}")
    require_finite(network, title)


def _classes(network: nn.Module) -> dict[str, str]:
    return {name: f"a {type(module).__name__}" for name, module in network.named_modules(remove_duplicate=False)}


def _shapes(network: nn.Module) -> dict[str, str]:
    return {name: f"of shape {list(tensor.shape)}" for name, tensor in network.state_dict().items()}


def require_same_outputs(network: Any, rebuilt: Adapter, title: str) -> None:
    """Refuse a network that computes something else than ``rebuilt``, which was made of its configuration and weights.

    Raises:
        ModelError: with the first module whose output differs, or that an output is not finite.
    """
    both = (network, rebuilt.network)
    probe = _probe(rebuilt)
    with _evaluating(network):
        try:
            outputs = [_outputs(each, {"": each}, probe) for each in both]
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{title}: a call of it fails: {type(error).__name__}: {reason}") from error
        if not all(outputs):
            problem = "a call of it returns no tensor, no tuple that begins with one, and no sample"
            raise ModelError(f"{title}: {problem}: {_ADVICE}")
        (_, found), (_, expected) = (each[-1] for each in outputs)
        if not expected.isfinite().all():
            raise ModelError(f"{title}: what it predicts is not finite")
        if differ(found, expected):
            # Not strict: where one has modules that the other lacks, the first name that differs comes before the end.
            calls = zip(*(_outputs(each, dict(each.named_modules()), probe) for each in both), strict=False)
            differing = (name for (other, ours), (name, theirs) in calls if other != name or differ(ours, theirs))
            name = next(differing, "")
            said = f"{name or 'the network itself'} computes something else than its configuration and weights say"
            raise ModelError(f"{title}: {said}: {_ADVICE}")


def _probe(adapter: Adapter) -> tuple[tuple[Any, ...], dict[str, Any]]:
    noise = torch.randn(PROBES, *adapter.sample_shape, generator=torch.Generator().manual_seed(0))
    last = adapter.schedule.num_train_timesteps - 1
    return adapter.arguments(noise.to(adapter.device), torch.linspace(0, last, PROBES, device=adapter.device).long())


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode, whose modules are afterwards in the modes they were in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def _outputs(network: nn.Module, modules: Mapping[str, nn.Module], probe: tuple[Any, Any]) -> list[tuple[str, Tensor]]:
    """The outputs of those of ``modules`` that give a tensor, in the order in which they finish."""
    found: list[tuple[str, Tensor]] = []

    def see(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        if isinstance(output, Tensor):
            found.append((name, output.detach().clone()))

    args, kwargs = probe
    with hooked(modules, see):
        network(*args, **kwargs)
    return found


def differ(one: Tensor, other: Tensor, narrow: bool = False) -> bool:
    """Whether two outputs, perhaps of a ``narrow`` network, differ by more than other kernels round."""
    bound = (NARROW_TOLERANCE if narrow or is_narrow(other) else TOLERANCE) * float(other.abs().max())
    return one.shape != other.shape or not torch.allclose(one, other, rtol=0, atol=bound)
