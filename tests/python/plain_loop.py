"""Tiny models whose prompts are numbers, and a pass of one over a whole text in which queries do not see evicted keys."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools" / "dump" / "tests"))

from laprox import eval as closed_loop
from laprox.eval.evicted import routed
from laprox_dump.tokens import Tokens
from tiny_models import FAMILIES, token_ids
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

CONTEXT = 60


class Numbers(closed_loop.Model):
    """A model whose tasks are token ids: task.prompt is a seed, and question the number of tokens that follow."""

    def encode(self, task):
        later = int(task.question or 0)
        ids = token_ids(CONTEXT + later, int(task.prompt))
        return Tokens(ids[:CONTEXT], ids[CONTEXT:], None)

    def answer(self, task, answer):
        return torch.tensor([int(part) for part in answer.split()])

    def decode(self, tokens):
        return " ".join(map(str, tokens))


def build(family):
    return Numbers(FAMILIES[family].build(), family)


def task(seed=3, question="", **more):
    return closed_loop.Task(id=f"t{seed}{question}", prompt=str(seed), question=question, **more)


def plain_logits(network, ids, gone, hear=None):
    """Logits [T, V] of the model's own eager attention over all tokens, no cache, in which evicted keys are masked.

    gone : [layer] of [H_kv, T], the position of the first query that does not see a key
    hear : called with each layer's module, query, key, value and scale
    """
    calls = iter(gone)

    def forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        if hear:
            hear(module, query[0], key[0], value[0], scaling)
        first_blind, heads, count = next(calls), query.shape[1], key.shape[2]
        position = torch.arange(count)
        seen = (position[None] <= position[:, None]).expand(heads, -1, -1).clone()
        if kwargs.get("sliding_window"):
            seen &= position[None] > position[:, None] - kwargs["sliding_window"]
        seen &= position[None, :, None] < first_blind.repeat_interleave(heads // len(first_blind), 0)[:, None]
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, added[None], scaling=scaling, dropout=0.0, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("plain_evicted", forward)
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    ALL_MASK_ATTENTION_FUNCTIONS.register("plain_evicted", lambda *_, **__: None)
    with routed(network, "plain_evicted"), torch.inference_mode():
        return network(input_ids=ids[None], use_cache=False).logits[0].float()
