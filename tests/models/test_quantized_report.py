"""What a script is told of a quantized pipeline."""

import pytest
from twins import stable_diffusion

from dmqbench.models.exchange import Description
from dmqbench.models.folders import ModelError
from dmqbench.models.quantized_report import report

LAYERS = [("a", 4, 6), ("b", (4, 4, 8), 6), ("c", 4, 6), ("d", 4, 6), ("e", 4, 6), ("f", 4, 6), ("end", 8, 32)]
PLAN = {
    "layers": [{"name": name, "weight_bits": w, "activation_bits": a, "boundaries": []} for name, w, a in LAYERS],
    "full_precision": ["first", "time"],
}

SAID = """\
some_method w4a6, scope common, ranges step; calibrated on 2 calls of ddim, seed 3
quantized: 7 layers
  w4a6: a, c, d, e and 1 more
  w4-8a6: b
  w8a32: end
in full precision: 2 layers
  first or last layer: first
  not said by the version that quantized it: time
matrix products quantized in 1 attentions: attn
norms, activation functions and softmax: in full precision, as in every method here
other parts, in full precision: vae, text_encoder"""


def test_every_layer_is_said_with_its_bits_or_why_it_has_none():
    pipe = stable_diffusion()
    with pytest.raises(ModelError, match="StableDiffusionPipeline that quantize_ has not quantized"):
        report(pipe)
    pipe.unet.dmqbench = Description(
        method="some_method",
        bits={"weight": 4, "activation": 6, "scope": "common", "ranges": "step"},
        plan=PLAN,
        attentions=("attn",),
        timesteps=(9, 3),
        engine="simulate",
        sampler={"name": "ddim"},
        budget={},
        seed=3,
        ids={},
        reasons={"first": "first or last layer"},
    )
    assert str(report(pipe)) == SAID
