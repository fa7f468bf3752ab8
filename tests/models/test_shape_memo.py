"""Shapes that are remembered, against those that torch finds."""

import pytest
import torch

from dmqbench.models.live_memory import peak_of
from dmqbench.models.shape_memo import ShapeMemo, compute

aten = torch.ops.aten


def meta(*shape):
    return torch.empty(*shape, device="meta")


CASES = {
    "sums": (aten.add.Tensor, (4, 3), (1, 3)),
    "layouts": (aten.clone.default, (4, 3)),
    "several": (aten.native_group_norm.default, (2, 4, 8), (4,), (4,), 2, 4, 8, 2, 1e-5),
    "views": (aten.transpose.int, (4, 3), 0, 1),
    "in_place": (aten.clamp_min_.Tensor, (4, 3), (1, 3)),
    "resized": (aten.transpose_.default, (4, 3), 0, 1),
    "shared": (aten._unsafe_view.default, (4, 3), [12]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_results_are_those_of_torch_every_time(case):
    func, *given = case

    def arguments():
        return [meta(*argument) if isinstance(argument, tuple) else argument for argument in given]

    def told(args, result):
        parts = result if isinstance(result, tuple) else (result,)
        sources = [arg for arg in args if isinstance(arg, torch.Tensor)]
        storages = [source.untyped_storage()._cdata for source in sources]
        return [
            (
                *(part.shape, part.stride(), part.dtype, part.untyped_storage().nbytes()),
                *(part.untyped_storage()._cdata in storages, [part is source for source in sources]),
            )
            for part in parts
        ], [(source.shape, source.stride()) for source in sources]

    args = arguments()
    expected = told(args, func(*args))
    for _ in range(3):
        args = arguments()
        assert told(args, compute(func, args, {})[0]) == expected


def test_values_decide_where_they_count():
    for chosen, rows in (([True, True, False], 2), ([True, False, False], 1)):
        assert compute(aten.index.Tensor, (torch.zeros(3, 2), [torch.tensor(chosen)]), {})[0].shape == (rows, 2)
    for count in (1, True, 1.0):
        assert compute(aten.full.default, ([2], count), {"device": "meta"})[0].dtype == torch.full([2], count).dtype


def test_a_network_of_which_all_is_known_holds_as_much(monkeypatch):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(inplace=True))
    network = torch.nn.Sequential(network, torch.nn.Flatten(2), torch.nn.LayerNorm(36)).to("meta")

    def peak():
        network.zero_grad(set_to_none=True)
        return peak_of(lambda: network(meta(5, 3, 8, 8)).sum().backward())

    first = peak()
    with ShapeMemo():
        assert peak() == peak() == first
    monkeypatch.setattr("dmqbench.models.live_memory.compute", lambda f, args, kwargs: (f(*args, **kwargs), "unknown"))
    assert peak() == first > 5 * 8 * 6 * 6 * 4
