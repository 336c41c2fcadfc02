"""Greedy decoding: the tokens that follow a prompt, with transformers' own cache where that works."""

import inspect
import logging
import warnings
from collections.abc import Callable

import torch
import transformers

from .errors import MaskMismatch, UnsupportedModel, first_line, is_out_of_memory

log = logging.getLogger(__name__)
FAILURES = (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError, MaskMismatch)


class Streamer:
    """What transformers' generate() tells of its tokens: the prompt's, then each one as it is found. `told` hears how many."""

    def __init__(self, told: Callable[[int], None]):
        self.told, self.count = told, -1

    def put(self, _tokens) -> None:
        """Count one more; the first call is the prompt's."""
        self.count += 1
        if self.count:
            self.told(self.count)

    def end(self) -> None:
        """Called after the last token."""


def greedy(
    model: torch.nn.Module,
    token_ids: torch.Tensor,
    count: int,
    stop_at_eos: bool,
    told: Callable[[int], None] = lambda found: None,
) -> torch.Tensor:
    """Up to `count` tokens that follow `token_ids` [n] under greedy decoding, int64; fewer only if the model ends its text.

    `told` hears how many are found so far. Nothing of the checkpoint's generation settings (penalties, sampling) takes part.
    Throws UnsupportedModel.
    """
    eos = model.generation_config.eos_token_id if stop_at_eos else None
    ids = token_ids.to(model.device)
    try:
        try:
            return _with_cache(model, ids, count, eos, told).cpu()
        except FAILURES as e:
            if is_out_of_memory(e):
                raise
            log.warning(
                "decoding with a cache fails inside transformers %s (%s); decoding without one, a whole pass for each token",
                transformers.__version__,
                first_line(e),
            )
            return _without_cache(model, ids, count, eos, told).cpu()
    except FAILURES as e:
        if is_out_of_memory(e):
            raise
        raise UnsupportedModel(
            f"{type(model).__name__}: decoding failed inside transformers {transformers.__version__} ({first_line(e)}); "
            "try a newer release, or force a text with --continuation"
        ) from e


def _with_cache(model: torch.nn.Module, ids: torch.Tensor, count: int, eos, told) -> torch.Tensor:
    settings = transformers.GenerationConfig(
        max_new_tokens=count, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=eos
    )
    own = model.generation_config
    try:
        model.generation_config = settings  # generate() fills unset fields from here, so it may not stay the checkpoint's
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = model.generate(
                ids[None],
                attention_mask=torch.ones_like(ids)[None],
                generation_config=settings,
                streamer=Streamer(told),
            )
    finally:
        model.generation_config = own
    return out[0, len(ids) :]


def _without_cache(model: torch.nn.Module, ids: torch.Tensor, count: int, eos, told) -> torch.Tensor:
    """Some releases have caches that do not fit their own masks (Gemma 2 in 4.48); a pass without one is always right."""
    ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    known = inspect.signature(model.forward).parameters
    last = {key: 1 for key in ("logits_to_keep", "num_logits_to_keep") if key in known}
    found: list[int] = []
    with torch.no_grad():
        while len(found) < count and not (found and found[-1] in ends):
            whole = torch.cat([ids, torch.tensor(found, dtype=ids.dtype, device=ids.device)])
            found.append(int(model(input_ids=whole[None], use_cache=False, **last).logits[0, -1].argmax()))
            told(len(found))
    return torch.tensor(found, dtype=torch.int64)
