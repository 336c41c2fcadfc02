"""Prompts to tokens: what lies before the eviction (the context) and what comes after it."""

from dataclasses import dataclass, field

import torch
import transformers

from .checkpoint import locate
from .errors import InputError, UsageError, first_line
from .prompts import Prompt

# Stands for "the context ends here" while a chat template is filled in; a private-use character, so no text contains it.
SPLIT = "\ue0f1laprox\ue0f1"


@dataclass
class Tokens:
    """A prompt in tokens, each int64 [n]: `context` is in the cache when eviction happens, the others come afterwards."""

    context: torch.Tensor
    question: torch.Tensor
    continuation: torch.Tensor | None
    facts: dict = field(default_factory=dict)  # for the dump's attributes


class Encoder:
    """Turns prompts into tokens with a model's tokenizer, which is loaded only if a prompt is text."""

    def __init__(self, model_name: str, vocabulary: int, chat_template: bool, max_tokens: int | None):
        self.model_name, self.vocabulary = model_name, vocabulary
        self.chat_template, self.max_tokens = chat_template, max_tokens
        self._tokenizer = None

    @property
    def tokenizer(self):
        """The model's own tokenizer. Throws InputError if it has none."""
        if self._tokenizer is None:
            checkpoint = locate(self.model_name)
            try:
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.location, **checkpoint.options)
            except Exception as e:  # tokenizer loaders throw whatever their parsers throw
                raise InputError(f"{self.model_name}: its tokenizer cannot be loaded: {first_line(e)}") from e
        return self._tokenizer

    def encode(self, prompt: Prompt) -> Tokens:
        """The tokens of one prompt. Throws InputError (empty, outside the vocabulary) or UsageError (no chat template)."""
        if self.chat_template:
            context, question = self._chat(prompt)
        else:
            context = self._ids(prompt.token_ids if prompt.token_ids is not None else prompt.text, start=True)
            question = self._ids(prompt.question or "")
        continuation = None if prompt.continuation is None else self._ids(prompt.continuation)
        facts = {"prompt": prompt.text} if prompt.text else {}
        if prompt.question:
            facts["question"] = prompt.question
        if self.max_tokens and len(context) > self.max_tokens:
            facts["tokens_before_cut"] = len(context)
            head = self.max_tokens - self.max_tokens // 2
            context = torch.cat([context[:head], context[len(context) - self.max_tokens // 2 :]])
        if len(context) == 0:
            raise InputError(f"prompt {prompt.name}: it is empty; expected at least one token")
        return Tokens(context, question, continuation, facts)

    def _ids(self, given: str | list[int], start: bool = False) -> torch.Tensor:
        """Token ids of text or of a list; `start` adds what the tokenizer puts at the start of a text."""
        if isinstance(given, str) and given:
            eos = self.tokenizer.eos_token_id
            found = list(self.tokenizer(given, add_special_tokens=start).input_ids)
            if start and found and found[-1] == eos and not given.endswith(self.tokenizer.eos_token or "\0"):
                found.pop()  # tokenizers made for encoders close the text, but this one goes on
        else:
            found = list(given)
        ids = torch.tensor(found, dtype=torch.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.vocabulary):
            raise InputError(
                f"token ids: expected 0..{self.vocabulary - 1} (the model's vocabulary), found {int(ids.min())}..{int(ids.max())}"
            )
        return ids

    def _chat(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        """Context and question inside the model's chat template, as one user message."""
        if prompt.token_ids is not None:
            raise UsageError(f"prompt {prompt.name}: --chat-template needs text, found token ids")
        if not getattr(self.tokenizer, "chat_template", None):
            raise UsageError(f"{self.model_name}: --chat-template: its tokenizer has no chat template; leave the option out")
        content = prompt.text + (SPLIT + prompt.question if prompt.question else "")
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, _, after = text.partition(SPLIT)
        ids = [
            torch.tensor(self.tokenizer(t, add_special_tokens=False).input_ids if t else [], dtype=torch.int64)
            for t in (before, after)
        ]
        return ids[0], ids[1]
