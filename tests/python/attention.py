"""What a model's attention kernel sees."""

import pytest
import torch


def recorded(model, ids, make):
    """make(module, q, k, v) of every layer, first to last; the model's attention is sdpa."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found, real = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def record(module, q, k, v, *arguments, **options):
        found.append(make(module, q, k, v))
        return real(module, q, k, v, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", record)
        model(ids)
    return found


def arrays(module, q, k, v):
    """q, k, v and w_o of the only sequence, as laprox.Layer takes them."""
    return [tensor.detach().numpy().copy() for tensor in (q[0], k[0], v[0], module.o_proj.weight.T)]
