"""Prompts to tokens: what lies before the eviction (the context) and what comes after it."""

from dataclasses import dataclass, field

import torch
import transformers

from .chat import fill_in
from .checkpoint import locate
from .errors import InputError, foreign
from .prompts import Prompt

# Stands before a text that has no text of its own before it, so that the tokenizer does not take it for the start of one.
BEFORE = "\n"


@dataclass
class Tokens:
    """A prompt in tokens, each int64 [n]: `context` is in the cache when eviction happens, the others come afterwards."""

    context: torch.Tensor
    question: torch.Tensor
    continuation: torch.Tensor | None
    facts: dict = field(default_factory=dict)  # for the dump's attributes


class Encoder:
    """Turns prompts into tokens with a model's tokenizer, which is loaded only if a prompt is text."""

    def __init__(self, model_name: str, vocabulary: int, chat_template: bool, max_tokens: int | None, tokenizer=None, **hub):
        """`tokenizer`: the model's own where it is there already. `hub` is what transformers needs to find the files: revision,
        trust_remote_code."""
        self.model_name, self.vocabulary, self.hub = model_name, vocabulary, hub
        self.chat_template, self.max_tokens = chat_template, max_tokens
        self._tokenizer = tokenizer

    @property
    def tokenizer(self):
        """The model's own tokenizer. Throws InputError if it has none."""
        if self._tokenizer is None:
            checkpoint = locate(self.model_name)
            with foreign(f"{self.model_name}: its tokenizer cannot be loaded", InputError):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                    checkpoint.location, **{**self.hub, **checkpoint.options}
                )
        return self._tokenizer

    def load_tokenizer(self) -> None:
        """Loads the tokenizer now and not with the first text. Throws InputError."""
        self._tokenizer = self.tokenizer

    def encode(self, prompt: Prompt) -> Tokens:
        """The tokens of one prompt.

        Text is tokenised whole and cut where its parts meet: a part tokenised alone may begin with a space that nobody wrote.
        Throws InputError (empty, outside the vocabulary, a template that changes the text) or UsageError (no chat template).
        """
        start = not self.chat_template  # a template writes the start token itself
        later = prompt.continuation if isinstance(prompt.continuation, str) else ""
        if not prompt.text and not prompt.token_ids:
            raise InputError(f"prompt {prompt.name}: it is empty; expected at least one token")
        if prompt.token_ids is not None and not self.chat_template:
            context = list(prompt.token_ids)
            question, continuation = self._after_ids([prompt.question or "", later])
        else:
            texts = fill_in(self.tokenizer, self.model_name, prompt) if self.chat_template else (prompt.text, prompt.question or "")
            context, question, continuation = self._parts([*texts, later], start)
        where = f"prompt {prompt.name}"
        context, question = self._checked(where, context), self._checked(where, question)
        if isinstance(prompt.continuation, list):
            continuation = prompt.continuation
        facts = {"prompt": prompt.text} if prompt.text else {}
        if prompt.question:
            facts["question"] = prompt.question
        if self.max_tokens and len(context) > self.max_tokens:
            facts["tokens_before_cut"] = len(context)
            head = self.max_tokens - self.max_tokens // 2
            context = torch.cat([context[:head], context[len(context) - self.max_tokens // 2 :]])
        if len(context) == 0:
            raise InputError(f"prompt {prompt.name}: its tokenizer makes no token of it; expected at least one")
        return Tokens(context, question, None if prompt.continuation is None else self._checked(where, continuation), facts)

    def following(self, name: str, text: str) -> torch.Tensor:
        """The tokens of a text that follows tokens of the prompt `name`, whatever they are. Throws InputError."""
        return self._checked(f"prompt {name}", self._after_ids([text])[0])

    def _checked(self, where: str, ids: list[int]) -> torch.Tensor:
        """Token ids as int64 [n]. Throws InputError for those outside the vocabulary."""
        if ids and not (min(ids) >= 0 and max(ids) < self.vocabulary):
            found = f"{_short(min(ids))}..{_short(max(ids))}"
            raise InputError(f"{where}: token ids: expected 0..{self.vocabulary - 1} (the model's vocabulary), found {found}")
        return torch.tensor(ids, dtype=torch.int64)

    def _after_ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts that follow token ids, whose own text is not known."""
        if not any(texts):
            return [[] for _ in texts]
        before, *parts = self._parts([BEFORE, *texts], False)
        return parts if before == self._tokenise(BEFORE, False)[0] else self._parts(texts, False)

    def _parts(self, texts: list[str], start: bool) -> list[list[int]]:
        """The ids of the joined texts, cut where they meet; `start` adds what the tokenizer puts at the start of a text.

        A token that reaches over a boundary belongs to the later part, so that no part holds characters of one after it.
        """
        whole = "".join(texts)
        if not whole:
            return [[] for _ in texts]
        ids, ends = self._tokenise(whole, start)
        parts, first, boundary = [], 0, 0
        for text in texts[:-1]:
            boundary += len(text)
            if boundary == len(whole):
                last = len(ids)
            elif ends is not None:
                last = next((i for i in range(first, len(ids)) if ends[i] > boundary), len(ids))
            else:
                last = max(first, _shared(ids, self._tokenise(whole[:boundary], start)[0]))
            parts.append(ids[first:last])
            first = last
        return [*parts, ids[first:]]

    def _tokenise(self, text: str, start: bool) -> tuple[list[int], list[int] | None]:
        """The ids of a text, and for each the character behind its last one; None for tokenizers that do not tell."""
        if not text:
            return [], []
        fast = getattr(self.tokenizer, "is_fast", False)
        with foreign(f"{self.model_name}: its tokenizer fails", InputError):
            found = self.tokenizer(text, add_special_tokens=start, return_offsets_mapping=fast)
        ids = list(found.input_ids)
        eos, written = self.tokenizer.eos_token_id, self.tokenizer.eos_token or "\0"
        if start and ids and eos is not None and ids[-1] == eos and not text.endswith(written):
            ids.pop()  # tokenizers made for encoders close the text, but this one goes on
        return ids, [end for _, end in found.offset_mapping][: len(ids)] if fast else None


def _shared(a: list[int], b: list[int]) -> int:
    """How many ids two lists have in common at their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _short(number: int) -> str:
    """A number as text; ids of thousands of digits, which Python refuses to print, by their size."""
    return str(number) if abs(number) < 10**20 else f"a number of {number.bit_length()} bits"
