"""Prompts from files."""

import json
import os
from dataclasses import dataclass

from .errors import InputError


@dataclass
class Prompt:
    """One prompt as the user gave it: text, or token ids from an engine of the user's own."""

    name: str
    text: str = ""
    token_ids: list[int] | None = None
    question: str | None = None
    continuation: str | list[int] | None = None


def read_text(path: str) -> str:
    """The text of a UTF-8 file. Throws InputError."""
    try:
        with open(path, encoding="utf-8", newline="") as f:
            return f.read()
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: expected UTF-8 text, found the byte 0x{e.object[e.start]:02x} at offset {e.start}") from e
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}") from e


def read_prompts(path: str) -> list[Prompt]:
    """A JSON-lines file as many prompts, any other file as one. Throws InputError, naming the line.

    Each line is an object with `prompt` (text) or `token_ids` (list of integers), and optionally `id` (the dump's file name),
    `question` and `continuation` (text or list of integers).
    """
    text = read_text(path)
    if not path.endswith((".jsonl", ".ndjson")):
        return [Prompt(os.path.splitext(os.path.basename(path))[0], text)]
    prompts = [_parse(f"{path}:{n}", line, n) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    names = [p.name for p in prompts]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: the id {name!r} occurs {names.count(name)} times; each prompt needs its own file name")
    return prompts


def _parse(where: str, line: str, number: int) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as e:
        raise InputError(f"{where}: not JSON: {e.msg} at column {e.colno}") from e
    if not isinstance(entry, dict) or ("prompt" in entry) == ("token_ids" in entry):
        raise InputError(f"{where}: expected an object with either `prompt` or `token_ids`")
    unknown = set(entry) - {"id", "prompt", "token_ids", "question", "continuation"}
    if unknown:
        raise InputError(f"{where}: unknown key {sorted(unknown)[0]!r}; known are id, prompt, token_ids, question, continuation")
    name = str(entry.get("id", f"{number:05d}"))
    if not name or "/" in name or name.startswith("."):
        raise InputError(f"{where}: id {name!r}: it names a file, so expected text without '/' that does not start with '.'")
    for key, kinds in (("prompt", str), ("question", str), ("token_ids", list), ("continuation", (str, list))):
        value = entry.get(key)
        wrong = value is not None and not isinstance(value, kinds)
        if wrong or (isinstance(value, list) and not all(type(i) is int for i in value)):
            raise InputError(
                f"{where}: {key}: expected {'text' if kinds is str else 'a list of integers'}, found {json.dumps(value)[:40]}"
            )
    return Prompt(name, entry.get("prompt", ""), entry.get("token_ids"), entry.get("question"), entry.get("continuation"))
