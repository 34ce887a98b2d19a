"""Activity of a base in half precision: what it sums is computed in fp64 from the module's outputs."""

import pytest
import torch

from scumble.lora.activity import on_data
from scumble.lora.adapter import Adapter, Factors
from scumble.lora.spec import LoraSpec
from tests.tiny import tiny_gpt2, tiny_ids


def test_a_bias_is_subtracted_in_fp64():
    """A bias 1000 times the rest: in bf16 y - b would be rounded once more, and be off by much."""
    model = tiny_gpt2().to(torch.bfloat16)
    path = "transformer.h.0.attn.c_attn"
    module = model.get_submodule(path)
    with torch.no_grad():
        module.bias.copy_(torch.linspace(0.3, 0.7, module.bias.numel()))
    width, out = module.weight.shape
    one = Adapter(
        LoraSpec(rank=2, targets=("c_attn",)), {path: Factors(torch.ones(2, width), torch.ones(out, 2))}
    )
    seen = []
    hook = module.register_forward_hook(lambda module, args, result: seen.append(result))
    ids = tiny_ids()
    with torch.no_grad():
        found = on_data(model, [one], ids.tolist())
    hook.remove()
    plain = torch.cat([y.flatten(0, -2) for y in seen]).double() - module.bias.detach().double()
    assert found.outputs[path] == pytest.approx(float(plain.norm()), rel=1e-12)  # the same numbers, in fp64
    narrow = torch.cat([(y - module.bias.detach()).flatten(0, -2) for y in seen]).double()
    assert abs(float(narrow.norm() / plain.norm()) - 1) > 1e-8  # so that the test could tell
