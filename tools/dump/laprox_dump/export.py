"""One prompt through one model into one dump: decode, run once more while recording, prove each layer, write it."""

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

from . import __version__
from .attention import PROBE
from .capture import Recorder
from .context import check_length
from .decode import greedy
from .errors import InputError, UsageError
from .heap import give_back_freed_tensors
from .layer import FILE_DTYPES, Layer, Positions, check_layer
from .replay import TOLERANCE, prove
from .tokens import Tokens
from .writer import DumpWriter

LAST_PROMPT_OUTPUTS = 32  # outputs stored of the prompt's end, beside all decoded ones ...
SPREAD_PROMPT_OUTPUTS = 32  # ... and of positions spread over the stored prompt queries, where windows and masks differ


@dataclass
class Options:
    """What to record. `recent` None stores all queries, n the prompt's last n and the later ones; `layers` None all."""

    decode: int = 64
    recent: int | None = None
    layers: set[int] | None = None
    dtype: torch.dtype | None = None
    stop_at_eos: bool = True
    force: bool = False
    gzip: int = 0
    inputs: tuple[str, ...] = ()  # the files that are read: none of them may become the output


@dataclass
class Summary:
    """What was written: sizes, and the proof's error of each layer in the file's order."""

    path: str
    layers: int
    context_length: int
    tokens: int
    errors: list[float]
    tolerance: float

    def worst(self) -> tuple[float, int]:
        """The largest error and the layer that has it."""
        return max((e, i) for i, e in enumerate(self.errors))


def export_prompt(
    model: torch.nn.Module,
    tokens: Tokens,
    path: str,
    options: Options,
    progress: Callable[[str, int], None] = lambda stage, count: None,
) -> Summary:
    """Write the dump of one prompt to `path`.

    `model` comes from `model.load` or `model.prepare`; `progress(stage, count)` hears what is being done, and how many
    tokens are decoded or layers written. Memory beyond the model and its own run: one layer's tensors. Throws DumpError; then
    nothing is left under `path`.
    """
    give_back_freed_tensors()
    dtype = file_dtype(model, options.dtype)
    fixed = torch.cat([tokens.context, tokens.question])
    later = len(tokens.continuation) if tokens.continuation is not None else options.decode
    check_length(model, len(tokens.context), len(fixed), later)
    progress("probing", 0)
    extent = probe(model, fixed, options, dtype)
    _check_disk(path, extent, choose_positions(len(fixed) + later, len(tokens.context), options.recent), dtype, options.gzip)
    continuation = tokens.continuation
    if continuation is None:
        progress("decoding", 0)
        told = functools.partial(progress, "decoding")
        continuation = greedy(model, fixed, options.decode, options.stop_at_eos, told) if options.decode else fixed[:0]
    ids = torch.cat([fixed, continuation])
    positions = choose_positions(len(ids), len(tokens.context), options.recent)
    facts = {**provenance(model, dtype), **tokens.facts, "proof_tolerance": TOLERANCE[dtype]}
    errors = []
    with DumpWriter(path, positions, facts, options.force, options.gzip, options.inputs) as writer:
        writer.token_ids(ids)

        def keep(layer: Layer, error: float) -> None:
            errors.append(error)
            writer.add(layer, proof_error=error)
            progress("recording", len(errors))

        progress("recording", 0)
        record(path, model, ids, positions, options.layers, dtype, keep)
    return Summary(path, len(errors), len(tokens.context), len(ids), errors, TOLERANCE[dtype])


def record(
    where: str,
    model: torch.nn.Module,
    ids: torch.Tensor,
    positions: Positions,
    wanted: set[int] | None,
    dtype: torch.dtype,
    keep: Callable[[Layer, float], None],
) -> int:
    """Run the model once; each wanted layer, as the file will hold it, goes to `keep` with its proof's error.

    Returns how many attention layers ran. Throws InputError or ProofError, naming `where` and the layer.
    """
    hidden = None

    def on_layer(ordinal: int, layer: Layer) -> None:
        nonlocal hidden
        layer, name = layer.to(dtype), f"{where}: layer {ordinal}"
        check_layer(name, layer, positions, hidden)
        hidden = layer.w_o.shape[1]
        keep(layer, prove(name, layer, positions, TOLERANCE[dtype]))

    recorder = Recorder(positions, wanted, on_layer)
    recorder.run(model, ids)
    return recorder.seen


def choose_positions(tokens: int, context: int, recent: int | None) -> Positions:
    """The stored queries (a tail of the sequence) and, among them, the positions whose output is stored."""
    first = 0 if recent is None else max(0, context - recent)
    spread = torch.linspace(first, context - 1, min(SPREAD_PROMPT_OUTPUTS, context - first)).round().long()
    last = torch.arange(max(first, context - LAST_PROMPT_OUTPUTS), tokens)
    return Positions(tokens, context, torch.arange(first, tokens), torch.cat([spread, last]).unique())


@dataclass
class Extent:
    """What the layers of a dump hold, in elements: for each token, for each stored query, and independent of both."""

    per_token: int = 0
    per_query: int = 0
    fixed: int = 0

    def add(self, layer: Layer) -> None:
        """Count one more layer."""
        self.per_token += layer.k[:, 0].numel() + layer.v[:, 0].numel()
        self.per_query += layer.q[:, 0].numel()
        self.fixed += layer.w_o.numel()


def probe(model: torch.nn.Module, ids: torch.Tensor, options: Options, dtype: torch.dtype) -> Extent:
    """Run and prove the first tokens alone, so that a model that cannot be exported is refused in seconds.

    Returns the extent of what will be written. Throws what the export would throw.
    """
    ids, extent = ids[:PROBE], Extent()
    positions = choose_positions(len(ids), len(ids), None)
    seen = record(_title(model), model, ids, positions, options.layers, dtype, lambda layer, error: extent.add(layer))
    if options.layers is not None and seen <= max(options.layers):
        raise UsageError(f"--layers: expected 0..{seen - 1} (the model has {seen} attention layers), found {max(options.layers)}")
    return extent


def file_dtype(model: torch.nn.Module, asked: torch.dtype | None) -> torch.dtype:
    """The element type of the file: the one asked for, else the one the model runs in. Throws UsageError for one it cannot have."""
    dtype = asked or model.dtype
    if dtype not in TOLERANCE:
        raise UsageError(f"the model runs in {str(dtype)[6:]}, which a dump cannot hold; add --dtype {' or '.join(FILE_DTYPES)}")
    return dtype


def provenance(model: torch.nn.Module, dtype: torch.dtype) -> dict:
    """The root attributes that say where a dump comes from."""
    return {
        **getattr(model, "dump_facts", {}),  # of the loader: a GGUF file's types, folded adapters
        "model": _title(model),
        "source": f"laprox-dump {__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"{type(model).__name__} in {str(dtype)[6:]} on {model.device.type}",
    }


def _title(model: torch.nn.Module) -> str:
    return model.name_or_path or type(model).__name__


def _check_disk(path: str, extent: Extent, positions: Positions, dtype: torch.dtype, gzip: int) -> None:
    """Refuse a dump that cannot fit on the disk before the long run, not after it."""
    elements = extent.per_token * positions.tokens + extent.per_query * len(positions.queries) + extent.fixed
    needed = elements * dtype.itemsize * (0.5 if gzip else 1)  # compressed floating-point numbers stay above half their size
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    if needed > free:
        raise InputError(
            f"{path}: the dump takes about {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free; "
            "store fewer queries (--queries recent:64) or layers (--layers)"
        )
