"""Load a causal language model so that its attention goes through our function, and decode with it."""

import warnings

import torch
import transformers
from packaging.version import Version

from . import attention
from .errors import DeviceError, InputError, UnsupportedModel


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, for messages that must stay on one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_device(device: str) -> torch.device:
    """`device` as torch knows it. Throws DeviceError if this machine does not have it."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError) as e:
        raise DeviceError(f"--device {device}: {first_line(e)}") from e
    return found


def load(name: str, dtype: torch.dtype | None, device: torch.device) -> torch.nn.Module:
    """The model in evaluation mode; `dtype` None means the checkpoint's own. Throws InputError or DeviceError."""
    attention.register()
    key = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, attn_implementation="eager", **{key: dtype or "auto"})
    except (OSError, ValueError, KeyError, ImportError) as e:
        raise InputError(f"{name}: not a causal language model that transformers can load: {first_line(e)}") from e
    return prepare(model.to(device))


def prepare(model: torch.nn.Module) -> torch.nn.Module:
    """Route the attention of a loaded model through `attention.forward`."""
    attention.register()
    for module in model.modules():  # composed models (text beside vision) hold several configurations
        if hasattr(module, "config"):
            module.config._attn_implementation = attention.NAME
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{type(model).__name__} is an encoder-decoder; only decoder-only models have the cache in question")
    return model.eval()


def context_limit(model: torch.nn.Module) -> int | None:
    """The longest sequence the model is made for, in tokens; None if it does not say."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "max_position_embeddings", None)


def greedy(model: torch.nn.Module, token_ids: torch.Tensor, count: int, stop_at_eos: bool) -> torch.Tensor:
    """Up to `count` tokens that follow `token_ids` [n] under greedy decoding, int64; fewer only if the model ends its text.

    Nothing of the checkpoint's generation settings (penalties, sampling) takes part.
    """
    own = model.generation_config
    settings = transformers.GenerationConfig(
        max_new_tokens=count, do_sample=False, use_cache=True, pad_token_id=0,
        eos_token_id=own.eos_token_id if stop_at_eos else None,
    )
    ids = token_ids[None].to(model.device)
    try:
        model.generation_config = settings  # generate() fills unset fields from here, so it may not stay the checkpoint's
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as e:
        if isinstance(e, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(e):
            raise
        raise UnsupportedModel(
            f"{type(model).__name__}: decoding failed inside transformers {transformers.__version__} ({first_line(e)}); "
            "try a newer release, or force a text with --continuation"
        ) from e
    finally:
        model.generation_config = own
    return out[0, len(token_ids):].cpu()
