"""Record attention layers while a model runs: what went into each attention call, and what its output projection made of it.

The projection is not looked up by name. It is the first module with a weight matrix that runs after the attention call, and it
counts only if its input is, bit for bit, the concatenated heads that the attention returned. A model that gates or normalises
the heads in between is thereby recognised, and refused: a dump says output = concat(heads) @ w_o + b_o. What the attention module
returns must be, bit for bit, what the projection made: an adapter beside the projection is recognised by that.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import attention, rotary
from .errors import UnsupportedModel
from .layer import Layer, Positions
from .residual import ResidualWatch, norms


class Enough(Exception):
    """Thrown through the model's forward pass once the last layer that is wanted has been seen."""


@dataclass
class _Running:
    """A module whose forward pass has begun, with what it was given."""

    module: torch.nn.Module
    args: tuple
    kwargs: dict


@dataclass
class _Projected:
    """A layer whose projection has run and whose addition to the residual stream has not."""

    ordinal: int
    call: attention.Call
    layer: Layer
    output: torch.Tensor | None  # the projection's, whole, until the attention module has returned


class Recorder:
    """Turns attention calls and projections into `Layer`s.

    `on_layer(ordinal, layer)` gets each layer as soon as its output was added to the residual stream; its tensors still live on the
    model's device. `wanted` are ordinals among the model's attention layers, None for all. One `Recorder` serves one forward pass.
    """

    def __init__(self, positions: Positions, wanted: set[int] | None, on_layer: Callable[[int, Layer], None]):
        self.positions, self.wanted, self.on_layer = positions, wanted, on_layer
        self.seen = 0  # attention layers so far, recorded or not
        self._open: attention.Call | None = None  # its projection has not run
        self._projected: _Projected | None = None
        self._rotation: torch.Tensor | None = None  # of the open call
        self._running: list[_Running] = []
        self._caches: dict[bytes, int] = {}  # digest of a layer's keys and values -> the first recorded layer that has them
        self._recorded = 0
        self._watch = ResidualWatch()

    def run(self, model: torch.nn.Module, token_ids: torch.Tensor) -> None:
        """One forward pass over `token_ids` [T]. Throws UnsupportedModel, or whatever `on_layer` throws."""
        base = model.base_model  # without the language-model head: its logits [T, vocabulary] would be the largest tensor of all
        self._model = model
        hooks = [m.register_forward_pre_hook(self._on_entry, with_kwargs=True) for m in base.modules()]
        hooks.append(torch.nn.modules.module.register_module_forward_hook(self._on_module))
        try:
            with torch.no_grad(), attention.listening(self._on_attention), self._watch:
                base(input_ids=token_ids[None].to(model.device), use_cache=False)
            self._finish()
        except Enough:
            return
        except (TypeError, KeyError, AttributeError, ValueError) as e:
            # Code that picks its attention by name trips over ours: that is the model's limit, not a bug here.
            if self.seen == 0:
                raise UnsupportedModel(_unreached(model)) from e
            raise
        finally:
            for hook in hooks:
                hook.remove()
            self._watch.give_up()
        if self.seen == 0:
            raise UnsupportedModel(_unreached(model))
        if self._open is not None:
            self._refuse_unprojected()

    def _on_entry(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self._running.append(_Running(module, args, kwargs))
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                self._watch.entered(value)

    def _on_attention(self, call: attention.Call) -> None:
        if self._open is not None:
            self._refuse_unprojected()
        if call.query.shape[2] != call.key.shape[2] or call.key.shape[2] != self.positions.tokens:
            raise UnsupportedModel(
                f"{_name(call)}: self-attention over {self.positions.tokens} tokens was expected, found {call.query.shape[2]} "
                f"queries and {call.key.shape[2]} keys (cross attention, or keys kept from elsewhere)"
            )
        self._finish()
        if self.wanted is None or self.seen in self.wanted:
            self._rotation = self._rotation_of(call)
            self._open = call
        else:
            self._watch.forget()
        self.seen += 1

    def _rotation_of(self, call: attention.Call) -> torch.Tensor | None:
        begun = next((r for r in reversed(self._running) if r.module is call.module), None)
        if begun is None:
            return None
        running, self._running = self._running, []  # the module's parts run once more, and are no news
        try:
            return rotary.inverse_frequencies(self._model, call, begun.args, begun.kwargs)
        finally:
            self._running = running

    def _on_module(self, module: torch.nn.Module, inputs, output) -> None:
        if self._running and self._running[-1].module is module:
            self._running.pop()
        if self._projected is not None:
            self._check_returned(module, output)
        call, weight = self._open, getattr(module, "weight", None)
        if call is None or not isinstance(weight, torch.Tensor) or weight.ndim != 2:
            return
        width = call.heads.shape[2] * call.heads.shape[3]
        given = inputs[0] if inputs else None
        if given is None or not _same_bits(given, call.heads):
            raise UnsupportedModel(
                f"{_name(call)}: between attention and its output projection ({type(module).__name__}) the heads are changed "
                "(a gate, a norm, another order); a dump cannot express it"
            )
        self._open = None
        layer = self._layer(call, _projection(module, width, call), module.bias, output)
        inside = any(r.module is call.module for r in self._running)
        call.heads = None  # not needed any more
        self._projected = _Projected(self.seen - 1, call, layer, output if inside else None)
        self._watch.follow(output, self._on_stream)

    def _check_returned(self, module: torch.nn.Module, output) -> None:
        """Refuse an attention module that returns something else than its projection's output (an adapter, say)."""
        projected = self._projected
        if projected.output is None or module is not projected.call.module:
            return
        returned = output[0] if isinstance(output, (tuple, list)) else output
        if not _same_bits(returned, projected.output):
            raise UnsupportedModel(
                f"{_name(projected.call)}: what it returns is not what its output projection made of the heads (an adapter "
                "that is not folded into the weights, a gate, a norm); a dump cannot express it"
            )
        projected.output = None

    def _on_stream(self, stream: torch.Tensor) -> None:
        found = norms(stream, self.positions.queries)
        if bool((torch.isfinite(found) & (found > 0)).all()):
            self._projected.layer.residual_norms = found
        self._finish()

    def _finish(self) -> None:
        """Hand on the layer whose projection has run, with the residual norms if its addition was found."""
        projected, self._projected = self._projected, None
        self._watch.give_up()
        if projected is None:
            return
        self._recorded += 1
        self.on_layer(projected.ordinal, projected.layer)
        if self.wanted is not None and self.seen > max(self.wanted):
            raise Enough

    def _layer(self, call: attention.Call, w_o: torch.Tensor, bias, output: torch.Tensor) -> Layer:
        number = getattr(call.module, "layer_idx", None)
        at = self.positions.outputs.to(output.device)
        rows = output.reshape(-1, output.shape[-1])
        source = self._caches.setdefault(_digest(call.key, call.value), self._recorded)
        return Layer(
            q=call.query[0][:, self.positions.queries.to(call.query.device)],
            k=call.key[0],
            v=call.value[0],
            w_o=w_o,
            b_o=None if bias is None else bias.detach(),
            sinks=None if call.sinks is None else call.sinks.detach().reshape(-1),
            output=rows[at].float(),
            rope_inv_freq=self._rotation,
            scale=call.scale,
            softcap=call.softcap,
            sliding_window=call.sliding_window(),
            model_layer=self.seen - 1 if number is None else int(number),
            kv_source=None if source == self._recorded else source,
        )

    def _refuse_unprojected(self) -> None:
        raise UnsupportedModel(
            f"{_name(self._open)}: no output projection was found: no module with a weight matrix ran between this attention and "
            "the next one (a quantised layer, or several attentions that are combined)"
        )


def _digest(*tensors: torch.Tensor) -> bytes:
    """A hash of the tensors' bytes: layers that read one cache have the same keys and values to the bit, and no others do."""
    found = hashlib.blake2b(digest_size=32)
    for t in tensors:
        found.update(str(list(t.shape)).encode())
        for head in t[0]:
            found.update(head.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.digest()


def _projection(module: torch.nn.Module, width: int, call: attention.Call) -> torch.Tensor:
    """The projection's weights as [H_q * d_v, D], so that output = heads @ weights."""
    weight = module.weight.detach()
    plain = type(module.weight) in (torch.Tensor, torch.nn.Parameter)  # torchao's subclasses say that they are floating-point
    if not plain or not weight.is_floating_point():
        kind = weight.dtype if plain else type(weight).__name__
        raise UnsupportedModel(
            f"{_name(call)}: its output projection ({type(module).__name__}) holds {kind} weights; load the model unquantised"
        )
    if isinstance(module, torch.nn.Linear) and weight.shape[1] == width:
        return weight.T
    if type(module).__name__ == "Conv1D" and weight.shape[0] == width:  # transformers' Conv1D (GPT-2) stores [in, out]
        return weight
    raise UnsupportedModel(
        f"{_name(call)}: its output projection is a {type(module).__name__} with weights {list(weight.shape)}; "
        f"expected a Linear with {width} inputs"
    )


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same bytes in the same order, whatever their shapes; a NaN equals itself."""
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _name(call: attention.Call) -> str:
    layer = getattr(call.module, "layer_idx", None)
    return f"{type(call.module).__name__}" + ("" if layer is None else f" of layer {layer}")


def _unreached(model: torch.nn.Module) -> str:
    return (
        f"{type(model).__name__}: its attention does not go through transformers' attention-function registry, "
        "so what its kernel sees cannot be recorded"
    )
