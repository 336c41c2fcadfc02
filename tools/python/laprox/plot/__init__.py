"""Plots of a report: laprox.plot.error_over_budget(report) and so on return matplotlib Figures, laprox.plot.html(report) a page.

They need matplotlib and plotly: pip install 'laprox[plot]'.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .decoding import lifetimes
    from .draw import (
        error_over_budget,
        error_per_layer,
        error_while_decoding,
        kept_along_prompt,
        kept_per_head,
        overlap,
        regret,
    )
    from .page import page as html

__all__ = [
    "error_over_budget",
    "error_per_layer",
    "error_while_decoding",
    "html",
    "kept_along_prompt",
    "kept_per_head",
    "lifetimes",
    "overlap",
    "regret",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'laprox.plot' has no attribute '{name}'")
    if name == "html":
        from .page import page as found
    elif name == "lifetimes":
        from .decoding import lifetimes as found
    else:
        from . import draw

        found = getattr(draw, name)
    globals()[name] = found
    return found
