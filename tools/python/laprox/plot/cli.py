"""`laprox-plot`: draws a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._errors import DumpError, Error, FileError, UsageError
from .._files import check_output, reason, replacing
from .._interrupts import INTERRUPTED, leaving_at_once

_FORMATS = (".html", ".svg", ".png", ".pdf")


def main(arguments: list[str] | None = None) -> int:
    """The command line. Exit codes are laprox's: 0 done, 2 usage, 3 bad file."""
    parser = argparse.ArgumentParser(
        prog="laprox-plot",
        description="Draw a report that `laprox sweep -o` or `laprox-eval` wrote.",
        epilog="An .html file holds all figures and works offline; .svg, .png and .pdf hold the one that --figure names.",
    )
    parser.add_argument("report", nargs="+", help="report (HDF5); of laprox-eval also several over other prompts")
    parser.add_argument("-o", "--output", required=True, help="file to write: .html, .svg, .png or .pdf")
    parser.add_argument(
        "--figure",
        metavar="NAME",
        help="of a sweep: error-over-budget (default), regret, error-per-layer, kept-per-head, kept-along-prompt or overlap, "
        "and of one with a schedule error-while-decoding or lifetimes; "
        "of laprox-eval: kl-over-budget (default), score-over-budget, error-against-kl or needle",
    )
    parser.add_argument("--budget", help="of the figures that show one budget; default: the middle one")
    parser.add_argument("--highlight", default="5", help="how many of the best policies are in colour, or their names with commas")
    parser.add_argument("--needle", metavar="FIRST:LAST", help="tokens to mark along the prompt")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parsed = parser.parse_args(arguments)
    try:
        with leaving_at_once():
            draw = _drawing(parsed)
        draw()
    except UsageError as error:
        return _fail(2, error)
    except (Error, OSError) as error:
        return _fail(3, error)
    except ModuleNotFoundError as error:
        return _fail(2, f"{error}; pip install 'laprox[plot]' brings it")
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _drawing(parsed: argparse.Namespace) -> Callable[[], None]:
    """What is left to do once everything is found fit: writing the file."""
    output = Path(parsed.output)
    if output.suffix not in _FORMATS:
        raise UsageError(f"{output}: expected a name that ends with {', '.join(_FORMATS)}")
    if output.suffix == ".html" and parsed.figure:
        raise UsageError("--figure: an .html file holds all figures; leave it out, or write .svg, .png or .pdf")
    if output.exists() and not parsed.force:
        raise UsageError(f"{output}: exists; --force replaces it")
    check_output(output, parsed.report)
    highlight, needle = _highlight(parsed.highlight), _needle(parsed.needle)
    if _is_evaluation(parsed.report[0]):
        return _evaluation(parsed, output, highlight)
    if len(parsed.report) > 1:
        raise UsageError(f"expected one report of a sweep, found {len(parsed.report)}")
    from .._report import open_report

    report = open_report(parsed.report[0])
    if output.suffix == ".html":
        from . import html

        title = Path(parsed.report[0]).name
        return _text(output, html(report, budget=parsed.budget, highlight=highlight, needle=needle, title=title))
    return _image(output, _figure(report, parsed, highlight, needle))


def _figure(report: Any, parsed: argparse.Namespace, highlight: int | list[str], needle: tuple[int, int] | None) -> Any:
    from .decoding import lifetimes
    from .draw import FIGURES

    figures = FIGURES | {"lifetimes": lifetimes}
    name = parsed.figure or "error-over-budget"
    if name not in figures:
        raise UsageError(f"--figure: expected one of {', '.join(figures)}, found {name!r}")
    options: dict[str, object] = {}
    if name not in ("error-over-budget", "regret"):
        options["budget"] = parsed.budget
    else:
        _check_all_budgets(name, parsed.budget)
    if name in ("error-over-budget", "regret", "error-per-layer", "error-while-decoding"):
        options["highlight"] = highlight
    if name == "kept-per-head":
        options["policies"] = highlight
    if name == "kept-along-prompt":
        options["needle"] = needle
    return figures[name](report, **options)


def _check_all_budgets(figure: str, budget: str | None) -> None:
    if budget is not None:
        raise UsageError(f"--budget: {figure} shows all budgets; leave it out")


def _is_evaluation(path: str) -> bool:
    import h5py

    if not Path(path).is_file():
        raise FileError(f"{path}: no such file" if not Path(path).exists() else f"{path}: expected a file, found something else")
    try:
        with h5py.File(path) as file:
            found = file.attrs.get("format", "")
    except Exception as error:  # whatever a damaged file makes h5py raise
        raise DumpError(f"{path}: expected a report (HDF5), found something else ({reason(error)})") from error
    return isinstance(found, (str, bytes)) and found in ("laprox-eval", b"laprox-eval")


def _evaluation(parsed: argparse.Namespace, output: Path, highlight: int | list[str]) -> Callable[[], None]:
    from ..eval.report import open_evaluations
    from . import closed_loop

    report = open_evaluations(parsed.report)
    if output.suffix == ".html":
        return _text(output, closed_loop.page(report, budget=parsed.budget, highlight=highlight, title=Path(parsed.report[0]).name))
    name = parsed.figure or "kl-over-budget"
    if name not in closed_loop.FIGURES:
        raise UsageError(f"--figure: expected one of {', '.join(closed_loop.FIGURES)}, found {name!r}")
    options = {"budget": parsed.budget} if name == "needle" else {}
    if name != "needle":
        _check_all_budgets(name, parsed.budget)
    return _image(output, closed_loop.FIGURES[name](report, highlight=highlight, **options))


def _text(output: Path, text: str) -> Callable[[], None]:
    def write() -> None:
        with replacing(output) as temporary:
            temporary.write_text(text, encoding="utf-8")

    return write


def _image(output: Path, figure: Any) -> Callable[[], None]:
    def write() -> None:
        with replacing(output) as temporary:
            figure.savefig(temporary, dpi=160, format=output.suffix[1:])

    return write


def _highlight(text: str) -> int | list[str]:
    return int(text) if text.isdigit() else [name.strip() for name in text.split(";" if ";" in text else ",")]


def _needle(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UsageError(f"--needle: expected FIRST:LAST, for example 400:430, found {text!r}")
    return int(first), int(last)


def _fail(code: int, message: object) -> int:
    print(f"laprox-plot: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
