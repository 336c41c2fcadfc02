"""laprox replays the attention of recorded prompts and measures what evicting KV-cache entries does to each layer's output.

::

    import laprox

    report = laprox.sweep("dump.h5", ["snapkv", "h2o", "laprox"], ["5%", "10%", "20%"])
    laprox.plot.error_over_budget(report)

Layers come from dumps (a path, or open_dump) or from arrays (Layer). scores and kept ask one policy about one prompt, sweep
compares many, policy makes a Python function one of them, and plot draws a sweep's report.
"""

from typing import TYPE_CHECKING

from . import _load  # noqa: F401

# isort: split
from ._core import Policy, PolicyLayer
from ._core import version as _version
from ._dump import Dump, open_dump
from ._errors import ArrayError, BackendError, Bug, DumpError, Error, FileError, UsageError, VerificationError
from ._layer import Layer
from ._policies import PolicyInfo, allocators, policies, policy
from ._replay import Kept, kept, scores, sweep
from ._verify import verify

if TYPE_CHECKING:
    from . import plot
    from ._report import kept_tokens, open_report, save_report

__version__ = _version()

#: Names whose modules take long to import, with the modules.
_LAZY = {"kept_tokens": "_report", "open_report": "_report", "save_report": "_report", "plot": "plot"}

__all__ = [
    "ArrayError",
    "BackendError",
    "Bug",
    "Dump",
    "DumpError",
    "Error",
    "FileError",
    "Kept",
    "Layer",
    "Policy",
    "PolicyInfo",
    "PolicyLayer",
    "UsageError",
    "VerificationError",
    "allocators",
    "kept",
    "kept_tokens",
    "open_dump",
    "open_report",
    "plot",
    "policies",
    "policy",
    "save_report",
    "scores",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'laprox' has no attribute '{name}'")
    from importlib import import_module

    module = import_module(f".{_LAZY[name]}", __name__)
    found = module if name == "plot" else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
