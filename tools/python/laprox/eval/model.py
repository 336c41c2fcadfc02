"""A language model with its tokenizer, as the loop needs them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
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
        encoder = self._encoder(task.chat)
        if task.chat and not getattr(encoder.tokenizer, "chat_template", None):
            raise UsageError(
                f'{self.name}: the task asks for a chat template ("chat": true), which its tokenizer has not; leave it out of the '
                "task, or give laprox-eval needle --no-chat"
            )
        return encoder.encode(Prompt(task.id, task.prompt, question=task.question or None))

    def answer(self, task: Task, answer: str) -> torch.Tensor:
        """The tokens of `answer` as they follow the task's prompt.

        Where the tokenizer would join its beginning to the prompt's end, they are its own: the prompt's tokens are in the cache.
        """
        question, tokens = task.question or None, self.encode(task)
        joined = self._encoder(task.chat).encode(Prompt(task.id, task.prompt, question=question, continuation=answer))
        if torch.equal(joined.context, tokens.context) and torch.equal(joined.question, tokens.question):
            return joined.continuation
        return self._encoder(task.chat).following(task.id, answer)

    @cached_property
    def weights(self) -> str:
        """What tells these weights from others: SHA-256 of their names, shapes, types, and sums over their bits."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {_sums(tensor)}\n".encode())
        return found.hexdigest()

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


def _sums(tensor: torch.Tensor) -> list[int]:
    """Of the elements' bits, as integers, which come out alike in any order; by rows and columns, which may have changed places."""
    if tensor.numel() == 0:
        return []
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size(), torch.int8)
    bits = tensor.detach().reshape(len(tensor) if tensor.ndim else 1, -1).contiguous().view(integers)
    by_place = [bits.sum(dimension, dtype=torch.int64) for dimension in (0, 1)]
    return [int((sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum()) for sums in by_place]


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
