"""Prompts from files."""

import json
import os
import re
import reprlib
from collections import Counter
from dataclasses import dataclass

from .errors import InputError
from .files import read_regular

KEYS = ("id", "prompt", "token_ids", "question", "continuation")
MAX_NAME = 200  # bytes; file systems allow 255, of which the ending and the temporary file take some
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Prompt:
    """One prompt as the user gave it: text, or token ids from an engine of the user's own."""

    name: str
    text: str = ""
    token_ids: list[int] | None = None
    question: str | None = None
    continuation: str | list[int] | None = None


def is_json_lines(path: str) -> bool:
    """Whether a prompt file holds one prompt a line."""
    return path.endswith((".jsonl", ".ndjson"))


def read_text(path: str) -> str:
    """The text of a UTF-8 file, line ends untouched. Throws InputError."""
    try:
        return read_regular(path).decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: expected UTF-8 text, found the byte 0x{e.object[e.start]:02x} at offset {e.start}") from e


def read_prompts(path: str) -> list[Prompt]:
    """A JSON-lines file as many prompts, any other file as one. Throws InputError, naming the line.

    Each line is an object with `prompt` (text) or `token_ids` (list of integers), and optionally `id` (the dump's file name),
    `question` and `continuation` (text or list of integers).
    """
    text = read_text(path)
    if not is_json_lines(path):
        return [Prompt(os.path.splitext(os.path.basename(path))[0], text)]
    # JSON may hold other line separators of Unicode inside its strings, so only line feeds count
    prompts = [_parse(f"{path}:{n}", line, n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    name, count = next(iter(Counter(p.name for p in prompts).most_common(1)), ("", 0))
    if count > 1:
        raise InputError(f"{path}: the id {name!r} occurs {count} times; each prompt needs its own file name")
    return prompts


def _parse(where: str, line: str, number: int) -> Prompt:
    entry = _object(where, line)
    if not isinstance(entry, dict) or ("prompt" in entry) == ("token_ids" in entry):
        raise InputError(f"{where}: expected an object with either `prompt` or `token_ids`")
    unknown = set(entry) - set(KEYS)
    if unknown:
        raise InputError(f"{where}: unknown key {min(unknown)!r}; known are {', '.join(KEYS)}")
    for key, kinds in (("prompt", str), ("question", str), ("token_ids", list), ("continuation", (str, list))):
        if key in entry:
            _check_value(f"{where}: {key}", entry[key], kinds)
    return Prompt(
        _name(where, entry.get("id", f"{number:05d}")),
        entry.get("prompt", ""),
        entry.get("token_ids"),
        entry.get("question"),
        entry.get("continuation"),
    )


def _object(where: str, line: str):
    """What a line holds as JSON. Throws InputError, also for keys that occur twice: one of them would be lost silently."""

    def unique(pairs):
        keys = Counter(key for key, _ in pairs)
        twice = [key for key, count in keys.items() if count > 1]
        if twice:
            raise InputError(f"{where}: the key {twice[0]!r} occurs {keys[twice[0]]} times in one object")
        return dict(pairs)

    try:
        return json.loads(line, object_pairs_hook=unique)
    except json.JSONDecodeError as e:
        raise InputError(f"{where}: not JSON: {e.msg} at column {e.colno}") from e
    except ValueError as e:  # Python refuses to read numbers of thousands of digits
        raise InputError(f"{where}: a number has too many digits") from e
    except RecursionError as e:
        raise InputError(f"{where}: lists or objects are nested too deep") from e


def _check_value(where: str, value, kinds) -> None:
    if not isinstance(value, kinds) or (isinstance(value, list) and not all(type(i) is int for i in value)):
        expected = {str: "text", list: "a list of integers"}.get(kinds, "text or a list of integers")
        raise InputError(f"{where}: expected {expected}, found {reprlib.repr(value)}")
    half = SURROGATE.search(value) if isinstance(value, str) else None
    if half:
        raise InputError(f"{where}: expected Unicode text, found half a character ({half[0]!r}) at offset {half.start()}")


def _name(where: str, given) -> str:
    """The dump's file name without its ending. Throws InputError for what cannot be one."""
    if type(given) is not int and not isinstance(given, str):
        raise InputError(f"{where}: id: expected text or a whole number, found {reprlib.repr(given)}")
    name = str(given)
    if SURROGATE.search(name) or not name or "/" in name or name.startswith(".") or any(ord(c) < 32 or c == "\x7f" for c in name):
        raise InputError(
            f"{where}: id {reprlib.repr(name)}: it names a file, so expected text without '/' and control characters "
            "that does not start with '.'"
        )
    if len(name.encode()) > MAX_NAME:
        raise InputError(f"{where}: id: it names a file, so expected at most {MAX_NAME} bytes, found {len(name.encode())}")
    return name
