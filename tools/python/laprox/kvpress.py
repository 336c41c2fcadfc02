"""Any policy of laprox as a press of kvpress, which evicts while a transformers model generates.

::

    from laprox.kvpress import LaproxPress

    press = LaproxPress("laprox+layer", budget="5%")
    answer = pipeline("kv-press-text-generation", model=model)(context, question=question, press=press)

It needs kvpress: pip install 'laprox[kvpress]'.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from kvpress.presses.base_press import BasePress, is_prefilling
from kvpress.utils import extract_keys_and_values, get_prerope_query_states

from ._errors import UsageError
from ._layer import Layer
from ._policies import PolicyLike, parse
from ._replay import Kept, kept


@dataclass
class LaproxPress(BasePress):
    """Keeps what a laprox policy keeps, at a budget over the whole model.

    The layers' tensors, and the norms of the residual stream behind them, are gathered while the prompt is read. After the last
    layer the policy chooses, and each head's other tokens are hidden by kvpress's masked keys. So layers and heads may keep
    different numbers of tokens, and every allocator works; the cache's memory does not shrink. Attention implementation "eager"
    is not patched by kvpress and is refused.

    Parameters
    ----------
    policy : str, a function made by laprox.policy, or laprox.Policy
    budget : str or int
        "5%", 128 (tokens per KV head), "64MiB". Setting compression_ratio, as kvpress's evaluation does, replaces it.
    backend, threads
        As of laprox.kept.

    Attributes
    ----------
    kept : list of laprox.Kept
        What was kept of the last prompt, one for each sequence of the batch.
    """

    policy: PolicyLike = "laprox"
    budget: str | int = "10%"
    backend: str = "cpu"
    threads: int = 0
    kept: list[Kept] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        parse(self.policy)  # a policy that does not exist is refused before a model is loaded
        self._modules: list[Any] = []
        self._layers: list[list[Layer]] = []
        self._open: list[dict[str, Any]] | None = None  # of a layer whose residual stream has not come yet
        self._streams: set[int] = set()  # layers whose residual stream is seen
        self._last: int | None = None

    @property
    def compression_ratio(self) -> float:
        """The share of the cache that is evicted; known where the budget is a percentage."""
        text = str(self.budget)
        if not text.endswith("%"):
            raise UsageError(f"compression_ratio: the budget {text} is no percentage, so that the share depends on the prompt")
        return 1 - float(text[:-1]) / 100

    @compression_ratio.setter
    def compression_ratio(self, ratio: float) -> None:
        if not 0 <= ratio < 1:
            raise UsageError(f"compression_ratio: expected 0 or more and below 1, found {ratio}")
        self.budget = f"{round(100 * (1 - ratio), 6):g}%"

    def post_init_from_model(self, model: Any) -> None:
        """Called by kvpress before the prompt is read."""
        self._last = len(_blocks(model)) - 1
        self._modules, self._layers, self._open = [], [], None

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        """As kvpress's own, and the norm behind each attention layer tells of the residual stream, which policies may read."""
        with ExitStack() as stack:
            self._streams = set()
            for number, block in enumerate(_blocks(model)):
                norm = _norm_of_stream(block)
                if norm is not None:
                    self._streams.add(number)
                    stack.callback(norm.register_forward_pre_hook(self._on_stream).remove)
            with super().__call__(model):
                yield

    def forward_hook(self, module: Any, input: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Called by kvpress after every attention layer: gathers the layer, and after the last one evicts."""
        hidden = kwargs["hidden_states"]
        if not is_prefilling(kwargs["cache_position"], hidden.shape[1]):
            return output
        if module.config._attn_implementation == "eager":
            raise UsageError('attn_implementation="eager": kvpress cannot mask keys there; load the model with "sdpa"')
        keys, values = extract_keys_and_values(kwargs["past_key_values"], module.layer_idx)
        if module.layer_idx == 0:
            self._modules, self._layers = [], []
        self._modules.append(module)
        self._open = self._batch(module, hidden, keys, values, kwargs["position_embeddings"])
        if module.layer_idx not in self._streams:
            self._close()
        return output

    def _on_stream(self, norm: Any, inputs: tuple[Any, ...]) -> None:
        """The residual stream [batch, T, D] right after an attention layer's output was added to it."""
        if self._open is None:
            return
        for arguments, stream in zip(self._open, inputs[0].detach(), strict=True):
            rows = stream[arguments["positions"][0] :]
            arguments["residual_norms"] = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).cpu()
        self._close()

    def _close(self) -> None:
        """The open layer is complete; after the last one the policy chooses."""
        self._layers.append([Layer(**arguments) for arguments in self._open])
        self._open = None
        if self._modules[-1].layer_idx == self._last:
            self._evict()

    def _batch(self, module: Any, hidden: Any, keys: Any, values: Any, rotation: Any) -> list[dict[str, Any]]:
        """The arguments of one Layer for each sequence of the batch, with the queries that the policy reads."""
        policy, tokens = parse(self.policy), keys.shape[2]
        wanted = {"none": 1, "window": policy.query_window, "all": tokens}.get(policy.queries)
        if wanted is None:
            raise UsageError(f"policy '{policy.label}' reads the queries that judge it, which no cache can")
        first = tokens - min(wanted, tokens)
        with torch.no_grad():
            # All rows are projected, as the model did: a product of fewer rows may round differently.
            queries = _rotated(get_prerope_query_states(module, hidden)[:, :, first:], *(part[:, first:] for part in rotation))
            w_o = module.o_proj.weight.T.contiguous()
        bias, sinks = getattr(module.o_proj, "bias", None), getattr(module, "sinks", None)
        scaled = getattr(module.rotary_emb, "attention_scaling", 1.0) != 1.0
        settings = {
            "scale": module.scaling,
            "softcap": getattr(module, "attn_logit_softcapping", None) or 0.0,
            "window": getattr(module, "sliding_window", None) or 0,
            "sinks": sinks,
            "bias": bias,
            "positions": np.arange(first, tokens),
            "rope_inv_freq": None if scaled else module.rotary_emb.inv_freq,
        }
        stays = self.backend == "cuda" and keys.device.type == "cuda"  # the backend reads tensors where they are
        queries, keys, values, w_o = (part if stays else part.cpu() for part in (queries, keys, values, w_o))
        settings = {"w_o": w_o} | {name: _on_host(value) for name, value in settings.items()}
        return [{"q": queries[i], "k": keys[i], "v": values[i], **settings} for i in range(keys.shape[0])]

    def _evict(self) -> None:
        """Hides what the policy evicts in every layer, for kvpress's patched attention."""
        batch = range(len(self._layers[0]))
        self.kept = [
            kept([layers[i] for layers in self._layers], self.policy, self.budget, backend=self.backend, threads=self.threads)
            for i in batch
        ]
        for number, module in enumerate(self._modules):
            evicted = np.stack([~each.masks[number] for each in self.kept])
            device = module.o_proj.weight.device
            module.masked_key_indices = tuple(torch.from_numpy(part).to(device) for part in np.nonzero(evicted))
        self._modules, self._layers = [], []


def _blocks(model: Any) -> Any:
    return getattr(model.model, "language_model", model.model).layers


def _norm_of_stream(block: Any) -> Any:
    """The module that reads the stream after attention was added: Gemma has norms on both sides; without one before, unknown."""
    if not hasattr(block, "input_layernorm"):
        return None
    return getattr(block, "pre_feedforward_layernorm", None) or getattr(block, "post_attention_layernorm", None)


def _rotated(queries: Any, cosine: Any, sine: Any) -> Any:
    """RoPE of the first channels, as many as the rotation has; the others stay."""
    size = cosine.shape[-1]
    turned, rest = queries[..., :size], queries[..., size:]
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    half = torch.cat((-turned[..., size // 2 :], turned[..., : size // 2]), dim=-1)
    return torch.cat((turned * cosine + half * sine, rest), dim=-1)


def _on_host(value: Any) -> Any:
    return value.detach().float().cpu() if isinstance(value, torch.Tensor) else value
