"""`laprox-plot`: draws a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .._errors import Error, UsageError

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
        _run(parsed)
    except UsageError as error:
        return _fail(2, error)
    except (Error, OSError) as error:
        return _fail(3, error)
    except ModuleNotFoundError as error:
        return _fail(2, f"{error}; pip install 'laprox[plot]' brings it")
    return 0


def _run(parsed: argparse.Namespace) -> None:
    from .._report import open_report

    output = Path(parsed.output)
    if output.suffix not in _FORMATS:
        raise UsageError(f"{output}: expected a name that ends with {', '.join(_FORMATS)}")
    if output.exists() and not parsed.force:
        raise UsageError(f"{output}: exists; --force replaces it")
    highlight, needle = _highlight(parsed.highlight), _needle(parsed.needle)
    if _is_evaluation(parsed.report[0]):
        _draw_evaluation(parsed, output, highlight)
        return
    if len(parsed.report) > 1:
        raise UsageError(f"expected one report of a sweep, found {len(parsed.report)}")
    report = open_report(parsed.report[0])
    if output.suffix == ".html":
        from . import html

        text = html(report, budget=parsed.budget, highlight=highlight, needle=needle, title=Path(parsed.report[0]).name)
        output.write_text(text, encoding="utf-8")
        return
    from .decoding import lifetimes
    from .draw import FIGURES

    figures = FIGURES | {"lifetimes": lifetimes}
    parsed.figure = parsed.figure or "error-over-budget"
    if parsed.figure not in figures:
        raise UsageError(f"--figure: expected one of {', '.join(figures)}, found {parsed.figure!r}")
    options: dict[str, object] = {}
    if parsed.figure not in ("error-over-budget", "regret"):
        options["budget"] = parsed.budget
    if parsed.figure in ("error-over-budget", "regret", "error-per-layer", "error-while-decoding"):
        options["highlight"] = highlight
    if parsed.figure == "kept-per-head":
        options["policies"] = highlight
    if parsed.figure == "kept-along-prompt":
        options["needle"] = needle
    figures[parsed.figure](report, **options).savefig(output, dpi=160)


def _is_evaluation(path: str) -> bool:
    import h5py

    if not Path(path).is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        found = file.attrs.get("format", "")
    return found in ("laprox-eval", b"laprox-eval")


def _draw_evaluation(parsed: argparse.Namespace, output: Path, highlight: int | list[str]) -> None:
    from ..eval.report import open_evaluations
    from . import closed_loop

    report = open_evaluations(parsed.report)
    if output.suffix == ".html":
        output.write_text(closed_loop.page(report, highlight=highlight, title=Path(parsed.report[0]).name), encoding="utf-8")
        return
    name = parsed.figure or "kl-over-budget"
    if name not in closed_loop.FIGURES:
        raise UsageError(f"--figure: expected one of {', '.join(closed_loop.FIGURES)}, found {name!r}")
    options = {"budget": parsed.budget} if name == "needle" else {}
    closed_loop.FIGURES[name](report, highlight=highlight, **options).savefig(output, dpi=160)


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
