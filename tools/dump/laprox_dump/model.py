"""Load a causal language model so that its attention goes through our function."""

import torch
import transformers
from packaging.version import Version

from . import attention
from .adapters import fold
from .checkpoint import locate
from .errors import DeviceError, InputError, UnsupportedModel, first_line, foreign

RELEASE = Version(transformers.__version__)


def check_device(device: str) -> torch.device:
    """`device` as torch knows it. Throws DeviceError if this machine does not have it."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError) as e:
        raise DeviceError(f"--device {device}: {first_line(e)}") from e
    return found


def load(name: str, dtype: torch.dtype | None, device: torch.device, **hub) -> torch.nn.Module:
    """The model in evaluation mode; `dtype` None means the checkpoint's own. Throws InputError or DeviceError.

    `hub` is passed on: revision, and trust_remote_code, which is off unless it says True; transformers then never asks.
    """
    attention.register()
    checkpoint = locate(name)
    key = "dtype" if RELEASE >= Version("4.56") else "torch_dtype"
    options = {"trust_remote_code": False, **hub, **checkpoint.model_options, "attn_implementation": "eager", key: dtype or "auto"}
    with foreign(f"{name}: not a causal language model that transformers can load", InputError):
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.location, **options).to(device)
    _check_rotation(name, text_config(model))
    if checkpoint.facts:
        model.name_or_path, model.dump_facts = checkpoint.name, checkpoint.facts
    return prepare(model, name)


def prepare(model: torch.nn.Module, name: str | None = None) -> torch.nn.Module:
    """Route the attention of a loaded model through `attention.forward`; adapters are folded into its weights.

    `name` is what the user called the model. Throws UnsupportedModel.
    """
    attention.register()
    model, adapters = fold(model)
    if adapters:
        if name is not None and name != model.name_or_path:
            adapters = f"{name}: {adapters}"  # the model's own name is then that of the model below the adapter
        model.dump_facts = {**getattr(model, "dump_facts", {}), "adapters": adapters}
    for module in model.modules():  # composed models (text beside vision) hold several configurations
        if hasattr(module, "config"):
            module.config._attn_implementation = attention.NAME
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{type(model).__name__} is an encoder-decoder; only decoder-only models have the cache in question")
    return model.eval()


def text_config(model: torch.nn.Module):
    """The configuration of the language model, which composed models keep inside their own."""
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def _check_rotation(name: str, config) -> None:
    """Refuse a checkpoint whose rotary embedding this release would get wrong without a word.

    transformers 5 saves `rope_parameters`. Releases before it ignore them and run the model with their default base; no proof
    can notice, since it asks what the model computed and not whether it was the right model.
    """
    saved = getattr(config, "rope_parameters", None)
    understood = {"rope_type": "default", "rope_theta": getattr(config, "rope_theta", None)}
    if RELEASE < Version("5") and saved and saved != understood:
        raise InputError(
            f"{name}: its configuration gives rope_parameters {saved}, which only transformers 5 reads; "
            f"this is {transformers.__version__}, which would run the model with another rotary embedding"
        )
