"""The errors that a user can cause or meet: each is one line, and each has its exit code."""


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


class DeviceError(DumpError):
    """The device is missing or out of memory."""

    exit_code = 4


class ProofError(DumpError):
    """What was captured does not reproduce what the model computed."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, for messages that must stay on one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a class for GPUs, and for CPUs a plain RuntimeError whose text names its allocator."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or isinstance(error, RuntimeError)
        and ("out of memory" in text or "DefaultCPUAllocator" in text)
    )
