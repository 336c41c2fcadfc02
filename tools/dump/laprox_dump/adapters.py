"""Adapters (LoRA and its kin) that peft put beside a model's weights: folded into them, so that a dump's w_o is what runs."""

import sys

import torch

from .errors import UnsupportedModel, first_line


def fold(model: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """The model with every active adapter merged into its weights, and a text that names them; "" where there are none.

    Throws UnsupportedModel for adapters that cannot be merged: prompts that are learned, weights that are quantised.
    """
    if "peft" not in sys.modules:  # nothing can have put adapters there
        return model, ""
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = isinstance(model, peft.PeftModel)
    settings = getattr(model, "peft_config", None) or {}
    beside = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    if not beside and not wrapped:
        return model, ""
    if any(getattr(s, "is_prompt_learning", False) for s in settings.values()):
        raise UnsupportedModel("its adapter is a learned prompt, which is no part of the weights; a dump cannot express it")
    active = sorted({name for m in beside if not m.disable_adapters for name in m.active_adapters})
    where = sorted({p.rsplit(".", 1)[-1] for p, m in model.named_modules() if isinstance(m, BaseTunerLayer)})
    kinds = {name: str(getattr(settings.get(name), "peft_type", "adapter")).rsplit(".", 1)[-1] for name in active}
    try:
        for m in beside:
            if not m.disable_adapters and not m.merged:
                m.merge(safe_merge=True)
    except Exception as e:  # each kind of adapter throws its own
        raise UnsupportedModel(f"its adapters ({', '.join(active)}) cannot be folded into the weights: {first_line(e)}") from e
    if wrapped:
        model = model.unload() if hasattr(model, "unload") else model.get_base_model()
    if not active:
        return model, ""
    names = ", ".join(f"{kinds[name]} '{name}'" for name in active)
    return model, f"{names} on {', '.join(where)}, folded into the weights"
