"""A prompt inside a model's chat template, and where in the filled-in text the eviction happens."""

from .errors import InputError, UsageError, foreign
from .prompts import Prompt

# Stands for a message's content while a template is looked at; private-use characters, so no text contains it.
MARKER = "\ue0f1laprox\ue0f1"


def fill_in(tokenizer, where: str, prompt: Prompt) -> tuple[str, str]:
    """The filled-in template before and after the place where the context ends: behind the prompt, or at the end of everything.

    The template is filled in twice, with a marker and with the true text, and both have to agree: the message occurs once, and
    whole but for white space at its ends, which many templates strip. `where` names the model in messages.
    Throws UsageError (no template, or token ids) or InputError (a template that fails, or that changes what it is given).
    """
    if prompt.token_ids is not None:
        raise UsageError(f"prompt {prompt.name}: --chat-template needs text, found token ids")
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"{where}: --chat-template: its tokenizer has no chat template; leave the option out")
    frame = _render(tokenizer, where, MARKER)
    if frame.count(MARKER) != 1:
        raise InputError(
            f"{where}: its chat template puts the user's message into the text {frame.count(MARKER)} times; expected once. "
            "Fill the template in yourself and leave --chat-template out"
        )
    head, tail = frame.split(MARKER)
    question = prompt.question or ""
    whole = _render(tokenizer, where, prompt.text + question)
    content = prompt.text + question
    for kept in (content, content.rstrip(), content.lstrip(), content.strip()):
        if whole == head + kept + tail:
            break
    else:
        raise InputError(
            f"{where}: its chat template changes the text of prompt {prompt.name}, beyond white space at its ends; "
            "fill the template in yourself and leave --chat-template out"
        )
    if not question:
        return whole, ""
    stripped = len(content) - len(content.lstrip()) if kept in (content.lstrip(), content.strip()) and kept != content else 0
    end = len(head) + min(len(kept), max(0, len(prompt.text) - stripped))
    return whole[:end], whole[end:]


def _render(tokenizer, where: str, content: str) -> str:
    failure = f"{where}: its chat template cannot be filled in"
    try:
        with foreign(failure, InputError):
            text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    except MemoryError as e:  # which no smaller prompt would help
        raise InputError(f"{failure}: it makes more text than memory holds") from e
    if not isinstance(text, str):
        raise InputError(f"{where}: its chat template gives a {type(text).__name__}; expected text")
    return text
