"""The errors that a user can cause or meet: each is one line, and each has its exit code."""

import traceback
import unicodedata
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
STANDARD_LIBRARY = Path(traceback.__file__).parent
BUG_EXIT_CODE = 70


class DumpError(Exception):
    """Base of every expected failure; the command line prints its text alone, without a traceback."""

    exit_code = 3


class UsageError(DumpError):
    """Options that contradict each other or cannot be met."""

    exit_code = 2


class InputError(DumpError):
    """A prompt, array file, model name or output path that cannot be used."""

    exit_code = 3


class UnsupportedModel(DumpError):
    """The model computes something that the dump format cannot express."""

    exit_code = 3


class MaskMismatch(UnsupportedModel):
    """A mask has another size than the attention it is for, as the caches of some models make it."""


class DeviceError(DumpError):
    """The device is missing or out of memory."""

    exit_code = 4


class ProofError(DumpError):
    """What was captured does not reproduce what the model computed."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, for messages that must stay on one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a class for GPUs, and for CPUs a plain RuntimeError whose text names its allocator."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or isinstance(error, RuntimeError)
        and ("out of memory" in text or "DefaultCPUAllocator" in text)
    )


def one_line(text: str) -> str:
    """`text` on one line, with everything that a terminal would obey or an encoding refuse written as an escape."""
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return "".join(_escaped(c) if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs") else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def is_ours(error: BaseException) -> bool:
    """Whether this package threw `error`, and not transformers, torch or a model's own code that it called."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        place = Path(frame.filename)
        if HERE in place.parents:
            return True
        standard = STANDARD_LIBRARY in place.parents and "site-packages" not in place.parts
        if not standard and not frame.filename.startswith("<frozen "):
            return False  # the standard library throws on behalf of whoever called it
    return False


@contextmanager
def foreign(what: str, kind: type = UnsupportedModel, mixed: bool = False):
    """Turn whatever code outside this package throws into a `kind` of DumpError whose text begins with `what`.

    The classes are no help: models, tokenizers and their parsers throw all of them, and Rust's panics are no Exception at all.
    `mixed`: code of this package runs inside too, and an error that it threw itself stays what it is, a bug.
    """
    try:
        yield
    except (DumpError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:
        if is_out_of_memory(e) or (mixed and is_ours(e)):
            raise
        allow = "; if you trust it, add --trust-remote-code" if "trust_remote_code=True" in str(e) else ""
        raise kind(f"{what}: {type(e).__name__}: {first_line(e).rstrip('. ')}{allow}") from e
