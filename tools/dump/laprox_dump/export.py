"""One prompt through one model into one dump: decode, run once more while recording, prove each layer, write it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

from . import __version__
from .capture import Recorder
from .decode import greedy
from .errors import InputError, UsageError
from .layer import FILE_DTYPES, Layer, Positions, check_layer
from .model import context_limit
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


@dataclass
class Summary:
    """What was written: sizes, and the proof's error of each layer in the file's order."""

    path: str
    layers: int
    context_length: int
    tokens: int
    errors: list[float]
    tolerance: float
    generated: torch.Tensor

    def worst(self) -> tuple[float, int]:
        """The largest error and the layer that has it."""
        return max((e, i) for i, e in enumerate(self.errors))


def export_prompt(model: torch.nn.Module, tokens: Tokens, path: str, options: Options, attributes: dict | None = None,
                  progress: Callable[[int], None] = lambda n: None) -> Summary:
    """Write the dump of one prompt to `path`.

    `model` comes from `model.load` or `model.prepare`; `progress(n)` hears of each attention layer that is done. Memory beyond
    the model and its own run: one layer's tensors. Throws DumpError; then nothing is left under `path`.
    """
    dtype = file_dtype(model, options.dtype)
    tolerance = TOLERANCE[dtype]
    fixed = torch.cat([tokens.context, tokens.question])
    later = len(tokens.continuation) if tokens.continuation is not None else options.decode
    _check_length(model, len(fixed), later)
    extent = probe(model, fixed, options, dtype)
    most = choose_positions(len(fixed) + later, len(tokens.context), options.recent)
    _check_disk(path, extent, most, dtype, options.gzip)
    continuation = tokens.continuation
    if continuation is None:
        continuation = greedy(model, fixed, options.decode, options.stop_at_eos) if options.decode else fixed[:0]
    ids = torch.cat([fixed, continuation])
    positions = choose_positions(len(ids), len(tokens.context), options.recent)
    facts = {**provenance(model, dtype), **tokens.facts, **(attributes or {}), "proof_tolerance": tolerance}
    errors, hidden = [], None
    with DumpWriter(path, positions, facts, options.force, options.gzip) as writer:
        writer.token_ids(ids)

        def keep(ordinal: int, layer: Layer) -> None:
            nonlocal hidden
            layer, where = layer.to(dtype), f"{path}: layer {ordinal}"
            check_layer(where, layer, positions, hidden)
            hidden = layer.w_o.shape[1]
            errors.append(prove(where, layer, positions, tolerance))
            writer.add(layer, proof_error=errors[-1])
            progress(len(errors))

        Recorder(positions, options.layers, keep).run(model, ids)
    return Summary(path, len(errors), len(tokens.context), len(ids), errors, tolerance, continuation)


def choose_positions(tokens: int, context: int, recent: int | None) -> Positions:
    """The stored queries (a tail of the sequence) and, among them, the positions whose output is stored."""
    first = 0 if recent is None else max(0, context - recent)
    spread = torch.linspace(first, context - 1, min(SPREAD_PROMPT_OUTPUTS, context - first)).round().long()
    last = torch.arange(max(first, context - LAST_PROMPT_OUTPUTS), tokens)
    return Positions(tokens, context, torch.arange(first, tokens), torch.cat([spread, last]).unique())


@dataclass
class Extent:
    """What the layers of a dump hold, in elements: for each token, for each stored query, and independent of both."""

    layers: int = 0
    per_token: int = 0
    per_query: int = 0
    fixed: int = 0

    def add(self, layer: Layer) -> None:
        """Count one more layer."""
        self.layers += 1
        self.per_token += layer.k[:, 0].numel() + layer.v[:, 0].numel()
        self.per_query += layer.q[:, 0].numel()
        self.fixed += layer.w_o.numel()


def probe(model: torch.nn.Module, ids: torch.Tensor, options: Options, dtype: torch.dtype) -> Extent:
    """Run and prove the first tokens alone, so that a model that cannot be exported is refused in seconds.

    Returns the extent of what will be written. Throws what the export would throw.
    """
    ids = ids[:16]
    positions = choose_positions(len(ids), len(ids), None)
    extent, hidden = Extent(), None

    def look(ordinal: int, layer: Layer) -> None:
        nonlocal hidden
        layer, where = layer.to(dtype), f"{model.name_or_path or type(model).__name__}: layer {ordinal}"
        check_layer(where, layer, positions, hidden)
        prove(where, layer, positions, TOLERANCE[dtype])
        extent.add(layer)
        hidden = layer.w_o.shape[1]

    recorder = Recorder(positions, options.layers, look)
    recorder.run(model, ids)
    if options.layers is not None and recorder.seen <= max(options.layers):
        raise UsageError(
            f"--layers: expected 0..{recorder.seen - 1} (the model has {recorder.seen} attention layers), found {max(options.layers)}"
        )
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
        "model": model.name_or_path or type(model).__name__,
        "source": f"laprox-dump {__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
                  f"{type(model).__name__} in {str(dtype)[6:]} on {model.device.type}",
    }


def _check_length(model: torch.nn.Module, fixed: int, later: int) -> None:
    limit = context_limit(model)
    if limit is not None and fixed + later > limit:
        raise InputError(
            f"the prompt has {fixed} tokens and {later} are to follow; the model's context holds {limit}. "
            f"Cut the prompt with --max-tokens {max(1, limit - later)}, or choose a smaller --decode"
        )


def _check_disk(path: str, extent: Extent, positions: Positions, dtype: torch.dtype, gzip: int) -> None:
    """Refuse a dump that cannot fit on the disk before the long run, not after it."""
    elements = extent.per_token * positions.tokens + extent.per_query * len(positions.queries) + extent.fixed
    needed = elements * dtype.itemsize * (0.5 if gzip else 1)  # compressed floating-point numbers stay above half their size
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    if needed > free:
        raise InputError(
            f"{path}: the dump takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "store fewer queries (--queries recent:64) or layers (--layers)"
        )
