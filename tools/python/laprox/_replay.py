"""Scores, kept sets, sweeps and verification."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from ._arguments import callback, one_of, text, whole
from ._arrays import stream_handle
from ._dump import Dump, check_distinct
from ._errors import BackendError, UsageError
from ._layer import Layer, source_of_layers
from ._policies import PolicyLike, parse, parse_budgets, parse_many

if TYPE_CHECKING:
    import xarray

#: One prompt: a layer, all layers of a model, an open dump or a dump's path.
Prompt = Layer | Sequence[Layer] | Dump | str | Path
Progress = Callable[[int, int, str], None]
_MOST = 2**20  #: of a window and of segments
_MOST_THREADS = 1024  #: as of the command line


@dataclass(frozen=True)
class Kept:
    """What one policy keeps at one budget.

    Attributes
    ----------
    masks : list of arrays
        Per layer bool [kv_heads, C]: True where the token is kept.
    tokens : list of lists of arrays
        tokens[layer][kv_head]: ascending int32 positions of the kept tokens.
    policy : str
        The policy with every option spelled out.
    budget : str
    """

    masks: list[np.ndarray]
    tokens: list[list[np.ndarray]]
    policy: str
    budget: str

    @property
    def counts(self) -> list[list[int]]:
        """counts[layer][kv_head]: how many tokens are kept."""
        return [[len(head) for head in layer] for layer in self.tokens]

    def __repr__(self) -> str:
        total = sum(map(sum, self.counts))
        return f"<laprox.Kept: {self.policy} at {self.budget} keeps {total} entries of {len(self.tokens)} layers>"


def scores(
    layers: Prompt,
    policy: PolicyLike,
    *,
    budget: str | int | None = None,
    backend: str = "cpu",
    threads: int = 0,
    stream: Any = None,
    progress: Progress | None = None,
) -> Any:
    """A policy's scores: float64 [kv_heads, C], higher is kept; a list of these unless `layers` is a single Layer.

    Scores of tokens that the policy always keeps (its window, its sinks) mean nothing. `budget` is read only by policies whose
    scores depend on it. Raises UsageError where the layers cannot serve the policy, for example because queries are missing.

    Layers on a GPU need backend="cuda", which reads them there, behind what `stream` (a CUDA stream or its handle; by default
    PyTorch's current one) was given before the call; the result is on the host, and no other work on the GPU is waited for.
    """
    with ExitStack() as stack:
        found = _core.scores(
            source_of(layers, stack, stream),
            parse(policy),
            None if budget is None else one_budget(budget),
            backend_of(backend, threads, [layers]),
            callback(progress, "progress"),
        )
    return found[0] if isinstance(layers, Layer) else found


def kept(
    layers: Prompt,
    policy: PolicyLike,
    budget: str | int,
    *,
    backend: str = "cpu",
    threads: int = 0,
    stream: Any = None,
    progress: Progress | None = None,
) -> Kept:
    """What `policy` keeps of a prompt at a budget such as "5%", 128 (tokens per KV head) or "64MiB".

    Give all layers of the model where the policy splits the budget over layers. Pinned tokens count inside the budget. `stream` as
    in laprox.scores.
    """
    parsed, asked = parse(policy), one_budget(budget)
    with ExitStack() as stack:
        source = source_of(layers, stack, stream)
        [[cells]] = _core.kept(source, [parsed], [asked], backend_of(backend, threads, [layers]), callback(progress, "progress"))
    return Kept([mask.view(bool) for _, mask in cells], [tokens for tokens, _ in cells], parsed.spec, asked)


def sweep(
    prompts: Prompt | Iterable[Dump | str | Path | Sequence[Layer]],
    policies: PolicyLike | Iterable[PolicyLike],
    budgets: str | int | Sequence[str | int],
    *,
    softmax: str = "renormalized",
    queries: str = "decoded",
    window: int = 32,
    save_kept: bool = False,
    schedule: str = "once",
    segments: int | None = None,
    check: bool = True,
    backend: str = "cpu",
    threads: int = 0,
    stream: Any = None,
    progress: Progress | None = None,
) -> xarray.Dataset:
    """Compares policies over budgets, as `laprox sweep` does: an xarray Dataset with the names of a report.

    Parameters
    ----------
    prompts
        A dump (path or laprox.open_dump), one Layer, the layers of one prompt, or a list of dumps or of lists of layers: one
        sample each. A dump that is given twice, under whatever names, is refused.
    policies
        Policy strings, functions made by laprox.policy, or "all" for the catalogue.
    budgets
        "5%", 128 (tokens per KV head), "64MiB".
    softmax : {"renormalized", "truncated"}
        Over the kept keys, or the exact weights without rescaling.
    queries : {"decoded", "window"}
        Who judges: the held-out queries at positions >= context_length, or the prompt's last `window` ones (in-sample), which
        it must have.
    window : int
        1 to 2**20.
    save_kept : bool
        Keep the kept tokens of every cell: laprox.kept_tokens reads them. Under a schedule also evicted_at, when each token went.
    schedule : str
        When caches are cut: "once" after the prompt, and then after every decoded token ("step") or every N ("every:64"), with
        ",grow" behind it if budgets are shares of the tokens seen so far. docs/concepts.md defines it.
    segments : int, optional
        Stretches of the judging queries whose errors are reported each, up to 2**20: 8 under a schedule, else none.
    check : bool
        First replay the model's outputs that dumps store, which says whether they are what the model did.
    stream : optional
        As in laprox.scores.
    progress : callable, optional
        Called as progress(done, total, what).

    The Dataset has the dimensions dump, policy, budget, layer, kv_head and query_head; model_relative_error is the error of all
    layers together and relative_error that of each. Every variable's attribute long_name says what it is. Ctrl-C ends a sweep
    at the end of the layer that is worked on.

    Raises UsageError; DumpError and FileError of files; VerificationError where a dump does not reproduce the outputs that it
    stores; BackendError.
    """
    from ._report import to_dataset

    truncated = one_of(softmax, "softmax", ("renormalized", "truncated")) == "truncated"
    in_sample = one_of(queries, "queries", ("decoded", "window")) == "window"
    window = whole(window, "window", 1, _MOST)
    segments = -1 if segments is None else whole(segments, "segments", 0, _MOST)
    schedule = text(schedule, "schedule", '"once", "step" or "every:64"')
    with ExitStack() as stack:
        opened = _opened(prompts, stack)
        check_distinct([prompt for prompt in opened if isinstance(prompt, Dump)])
        _check_distinct_layers(opened)
        report = _core.sweep(
            [source_of(prompt, stack, stream) for prompt in opened],
            parse_many(policies),
            parse_budgets(budgets),
            truncated,
            window if in_sample else 0,
            bool(save_kept),
            schedule,
            segments,
            bool(check),
            backend_of(backend, threads, opened),
            callback(progress, "progress"),
        )
    return to_dataset(report)


def _check_distinct_layers(prompts: list) -> None:
    """Raises UsageError where two prompts in memory are the same layers: one prompt would count as two samples."""
    seen: dict[tuple[int, ...], int] = {}
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, (list, tuple)):
            continue
        first = seen.setdefault(tuple(id(layer) for layer in prompt), number)
        if first != number:
            raise UsageError(f"prompts: [{number}] has the layers of [{first}], which would count as two samples; give them once")


def one_budget(budget: Any) -> str:
    """The one budget that is asked for."""
    budgets = parse_budgets(budget)
    if len(budgets) != 1:
        raise UsageError(f"budget: expected one, found {len(budgets)}: {', '.join(budgets)}")
    return budgets[0]


def _opened(prompts: Any, stack: ExitStack) -> list[Prompt]:
    """The prompts, with a dump for every path; these are closed with `stack`."""
    listed = _prompts(prompts)
    if not listed:
        raise UsageError("prompts: expected at least one, found none")
    return [stack.enter_context(Dump(prompt)) if isinstance(prompt, (str, Path)) else prompt for prompt in listed]


def _prompts(prompts: Any) -> list[Prompt]:
    """One prompt, or several, as a list."""
    if isinstance(prompts, (Layer, Dump, str, Path)):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise UsageError(f"prompts: expected a laprox.Layer, a dump, a path, or a list of these, found {type(prompts).__name__}")
    given = list(prompts)
    if given and all(isinstance(item, Layer) for item in given):
        return [given]
    return given


def device_of_prompt(prompt: Any) -> int:
    """The GPU that a prompt's layers are on; -1: none."""
    first = prompt if isinstance(prompt, Layer) else prompt[0] if isinstance(prompt, (list, tuple)) and prompt else None
    return first._device if isinstance(first, Layer) else -1


def backend_of(name: str, threads: int, prompts: Sequence[Any]) -> _core.Backend:
    """The backend of that name, on the GPU that the prompts' layers are on. Raises BackendError where it does not read them."""
    devices = {device for device in map(device_of_prompt, prompts) if device >= 0}
    if len(devices) > 1:
        raise UsageError(f"expected prompts on one GPU, found some on each of {', '.join(f'cuda:{d}' for d in sorted(devices))}")
    device = next(iter(devices), 0)
    if devices and name != "cuda":
        raise BackendError(
            f'the layers are on the GPU cuda:{device}, and the backend {name} reads the host\'s memory; say backend="cuda", or '
            "make the layers of tensors on the host (.cpu())"
        )
    return _core.make_backend(text(name, "backend", '"cpu"'), whole(threads, "threads", 0, _MOST_THREADS), device)


def source_of(prompt: Prompt, stack: ExitStack, stream: Any = None) -> _core.Source:
    """A prompt for the C++ library; a dump that is opened here is closed with `stack`."""
    handle = None if stream is None else stream_handle(stream)
    if isinstance(prompt, Layer):
        return source_of_layers([prompt], stream=handle)
    if isinstance(prompt, Dump):
        return prompt._source()
    if isinstance(prompt, (str, Path)):
        return stack.enter_context(Dump(prompt))._source()
    if isinstance(prompt, Sequence) and prompt and all(isinstance(layer, Layer) for layer in prompt):
        return source_of_layers(prompt, stream=handle)
    raise UsageError(f"expected a laprox.Layer, a list of them, a dump or a dump's path, found {type(prompt).__name__}")
