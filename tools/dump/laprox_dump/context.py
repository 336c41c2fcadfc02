"""How long a sequence a model is made for, and where its rotary embedding changes with the length of the sequence."""

import logging
import math
from dataclasses import dataclass

import torch

from .errors import InputError
from .model import text_config

log = logging.getLogger(__name__)
STRETCHING = ("linear", "dynamic", "yarn")  # types whose factor is what their authors multiply the trained length by


@dataclass
class Rotation:
    """A rotary embedding as a configuration describes it: its type, factor, and the length that it was trained for."""

    kind: str
    factor: float
    original: int | None


def _whole(value) -> int | None:
    """A positive whole number of a configuration; None for anything else, such as XLNet's -1 for "no limit"."""
    return value if type(value) is int and value > 0 else None


def rotations(config) -> list[Rotation]:
    """The rotary embeddings of a model. transformers 5 has `rope_parameters` (of each kind of layer), 4 has `rope_scaling`."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(found, dict):
        return []
    nested = [p for p in found.values() if isinstance(p, dict)]
    result = []
    for p in nested or [found]:
        factor = p.get("factor")
        sound = isinstance(factor, (int, float)) and not isinstance(factor, bool) and math.isfinite(factor) and factor > 0
        original = getattr(config, "original_max_position_embeddings", None) or p.get("original_max_position_embeddings")
        result.append(
            Rotation(str(p.get("rope_type", p.get("type", "default"))), float(factor) if sound else 1.0, _whole(original))
        )
    return result


def context_limit(model: torch.nn.Module) -> int | None:
    """The longest sequence the model is made for, in tokens; None if it does not say.

    A rotary embedding that is stretched holds its factor times the trained length, where the configuration's own
    `max_position_embeddings` is often left at the trained one: Qwen2.5's documentation says to add YaRN in that way.
    """
    config = text_config(model)
    limit = _whole(getattr(config, "max_position_embeddings", None))
    if limit is None:
        return None
    lengths = [
        int((rotation.original or limit if rotation.kind == "yarn" else limit) * rotation.factor)
        for rotation in rotations(config)
        if rotation.kind in STRETCHING
    ]
    return max([limit, *lengths])


def check_length(model: torch.nn.Module, context: int, fixed: int, later: int, option: str = "--decode") -> None:
    """Refuse a sequence that the model is not made for, or whose prompt it would rotate in two ways. Throws InputError.

    `context` tokens are in the cache when eviction happens, `fixed` with the question, and up to `later` follow: as many as the
    command line's `option` asks for.
    """
    limit = context_limit(model)
    if limit is not None and fixed + later > limit:
        raise InputError(
            f"the prompt has {fixed} tokens and {later} are to follow; the model's context holds {limit}. "
            f"Cut the prompt with --max-tokens {max(1, limit - later)}, or choose a smaller {option}"
        )
    check_switch(model, context, fixed + later, option)


def check_switch(model: torch.nn.Module, context: int, total: int, option: str = "--decode") -> None:
    """Refuse a prompt whose keys depend on whether the later tokens are there. Throws InputError.

    LongRoPE changes all its factors, and dynamic NTK its base, once a sequence is longer than the trained length. A run over the
    whole sequence would then rotate the prompt's keys in another way than they stood in the cache when eviction happened.
    """
    config = text_config(model)
    for rotation in rotations(config):
        trained = _whole(getattr(config, "max_position_embeddings", None)) if rotation.kind == "dynamic" else rotation.original
        if rotation.kind not in ("longrope", "su", "dynamic") or trained is None or total <= max(context, trained):
            continue
        if context <= trained:
            raise InputError(
                f"the prompt has {context} tokens and {total} with what follows; this model's rotary embedding "
                f"({rotation.kind}) changes behind {trained} tokens, so the prompt's keys would not be those of its cache. "
                f"Cut to {trained} tokens in all (--max-tokens, {option}), or take a prompt of more than {trained}"
            )
        if rotation.kind == "dynamic":
            log.warning(
                "the rotary embedding (dynamic NTK) depends on the sequence's length: the dump has the keys of one pass over all "
                "%d tokens, not those of a cache that grew from %d",
                total,
                context,
            )
