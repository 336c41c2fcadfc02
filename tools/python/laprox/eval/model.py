"""A language model with its tokenizer, as the loop needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from laprox_dump.checkpoint import parsed_once
from laprox_dump.errors import foreign
from laprox_dump.layer import FILE_DTYPES
from laprox_dump.model import check_device, prepare
from laprox_dump.model import load as load_checkpoint
from laprox_dump.prompts import Prompt
from laprox_dump.tokens import Encoder, Tokens

from .._errors import UsageError
from . import evicted
from .tasks import Task


@dataclass
class Model:
    """A causal language model in transformers, and the name under which its tokenizer is found."""

    network: torch.nn.Module
    name: str
    max_tokens: int | None = None
    hub: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = prepare(self.network)
        evicted.register()
        self._encoders: dict[bool, Encoder] = {}

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.network.device

    @property
    def ends(self) -> set[int]:
        """The tokens that end a text."""
        eos = self.network.generation_config.eos_token_id
        return set() if eos is None else {eos} if isinstance(eos, int) else set(eos)

    def encode(self, task: Task) -> Tokens:
        """The task's tokens; a prompt longer than max_tokens loses its middle. Raises InputError or UsageError of laprox_dump."""
        return self._encoder(task.chat).encode(Prompt(task.id, task.prompt, question=task.question or None))

    def answer(self, task: Task, answer: str) -> torch.Tensor:
        """The tokens of `answer` as they would follow the task's prompt."""
        prompt = Prompt(task.id, task.prompt, question=task.question or None, continuation=answer)
        return self._encoder(task.chat).encode(prompt).continuation

    def count_tokens(self, text: str) -> int:
        """How many tokens the tokenizer makes of a text, without those that it puts at a text's start."""
        return len(self._encoder(False).tokenizer(text, add_special_tokens=False)["input_ids"])

    def load_tokenizer(self) -> None:
        """Loads the tokenizer now and not with the first task. Raises InputError of laprox_dump."""
        self._encoder(False).load_tokenizer()

    def decode(self, tokens: list[int]) -> str:
        """Their text, without tokens that no user sees."""
        kept = [token for token in tokens if token not in self.ends]
        return self._encoder(False).tokenizer.decode(kept, skip_special_tokens=True)

    def _encoder(self, chat: bool) -> Encoder:
        if chat not in self._encoders:
            with foreign(f"{self.name}: it has no table of input embeddings"):
                vocabulary = self.network.get_input_embeddings().num_embeddings
            tokenizer = next((encoder.tokenizer for encoder in self._encoders.values()), None)  # one serves both
            self._encoders[chat] = Encoder(self.name, vocabulary, chat, self.max_tokens, tokenizer, **self.hub)
        return self._encoders[chat]


def load(name: str, *, dtype: str | None = None, device: str = "cpu", max_tokens: int | None = None, **hub: Any) -> Model:
    """Loads a model by its HuggingFace name, folder or GGUF file.

    dtype is float32, float16 or bfloat16 (default: the checkpoint's); prompts are cut in the middle to max_tokens. `hub` is
    passed on: revision, trust_remote_code. Raises laprox_dump's InputError or DeviceError, or UsageError.
    """
    if dtype is not None and dtype not in FILE_DTYPES:
        raise UsageError(f"dtype: expected {', '.join(FILE_DTYPES)}, found {dtype!r}")
    hub = {"trust_remote_code": False, "revision": "main", **hub}
    with parsed_once():
        network = load_checkpoint(name, FILE_DTYPES[dtype] if dtype else None, check_device(device), **hub)
        model = Model(network, name, max_tokens, hub)
        model.load_tokenizer()
    return model
