"""Trajectories: a store's, left in another precision by an earlier version, are no bank; and how far they are."""

import types

import pytest
import torch
from safetensors.torch import save_file
from workbench import workbench

from dmqbench.data.bank import Trajectories
from dmqbench.store.artifact import StoreError
from dmqbench.tasks.trajectories import bank_of


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)])
def test_trajectories_that_are_not_of_float32_are_refused(tmp_path, dtypes):
    x, output = (torch.zeros(1, calls, 1, 2, 2, dtype=dtype) for calls, dtype in zip((3, 2), dtypes, strict=True))
    files = {f"{stream}_00000.safetensors": tmp_path / f"{stream}.safetensors" for stream in ("cal", "val")}
    for path in files.values():
        save_file(Trajectories(x, output, {}, (1, 0)).to_tensors(), path)
    shop = types.SimpleNamespace(
        made_once=lambda *_: types.SimpleNamespace(path=tmp_path, files=files),
        ids=types.SimpleNamespace(trajectories="id"),
        job=types.SimpleNamespace(seed=0),
    )
    with pytest.raises(StoreError, match="not of float32; remove the folder"):
        bank_of(shop)  # type: ignore[arg-type]


def test_every_call_of_a_batch_is_told():
    denoising, shares = workbench().denoising, []
    denoising.follow(stream="val", seed=0, indices=range(2), move=shares.append)
    denoising.sample_chunk(0, chunk=2, seed=0, move=shares.append)
    calls = denoising.sampler.network_calls
    assert shares == [(call + 1) / (calls + 1) for call in range(calls)] * 2
