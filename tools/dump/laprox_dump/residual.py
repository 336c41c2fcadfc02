"""The residual stream right after a layer's attention output was added to it, found by watching the additions.

No module and no variable is looked up by name. What the output projection returned is followed through the model's own tensor
operations (a norm, a multiplier, dropout) until it is added to the stream. The stream is a tensor that was given to a module of
the layer before its attention ran: the input of the block, or of its first norm.

In a sequential block that addition is the first one, and its result is what is wanted. A parallel block adds attention and MLP
together, so no tensor of the model holds the stream after attention alone; there it is the stream plus the attention's summand.
"""

import weakref
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode

ADDITIONS = {
    torch.add,
    torch.Tensor.add,
    torch.Tensor.add_,
    torch.Tensor.__add__,
    torch.Tensor.__radd__,
    torch.Tensor.__iadd__,
}


class ResidualWatch(TorchFunctionMode):
    """`with ResidualWatch() as watch:` around a forward pass.

    Modules' inputs are announced with `entered`, a layer's projected attention output with `follow`, which also names who hears
    of the stream. He is called once with the stream [1, T, D] after the addition, inside the model's forward pass, and is free to
    throw. He is not called where the addition was not found; `give_up` then ends the search.
    """

    def __init__(self):
        super().__init__()
        self._entered: list[weakref.ref] = []  # since the last layer whose output was followed
        self._streams: list[weakref.ref] = []  # entered before the output that is followed
        self._on_stream: Callable[[torch.Tensor], None] | None = None
        self._followed: dict[int, weakref.ref] = {}
        self._summand: torch.Tensor | None = None  # of a parallel block: what attention adds
        self._size = 0

    @property
    def searching(self) -> bool:
        """Whether a layer's addition is still looked for."""
        return self._on_stream is not None

    def entered(self, tensor: torch.Tensor) -> None:
        """A module was given `tensor`: until the next layer it may turn out to be the stream."""
        if tensor.is_floating_point() and tensor.ndim >= 2:
            self._entered.append(weakref.ref(tensor))

    def forget(self) -> None:
        """A layer that nobody asks for has run its attention: the inputs before it are no streams of the next one."""
        self._entered = []

    def follow(self, projected: torch.Tensor, on_stream: Callable[[torch.Tensor], None]) -> None:
        """Look for the addition of `projected` [1, T, D] (or [T, D]) to the stream."""
        self._on_stream, self._size, self._summand = on_stream, projected.numel(), None
        self._followed = {id(projected): weakref.ref(projected)}
        self._streams, self._entered = self._entered, []

    def give_up(self) -> None:
        """Stop looking."""
        self._on_stream, self._summand = None, None
        self._followed, self._streams = {}, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.searching:
            return function(*args, **kwargs)
        operands = [t for t in _tensors([args, kwargs]) if t.numel() == self._size or self._is_followed(t)]
        followed = next((t for t in operands if self._is_followed(t)), None)
        if followed is None:
            return function(*args, **kwargs)
        other = next((t for t in operands if t is not followed and t.numel() == self._size and not self._is_followed(t)), None)
        kept = followed
        if other is not None and self._summand is None and function in ADDITIONS and args and args[0] is followed:
            kept = followed.clone() if function in (torch.Tensor.add_, torch.Tensor.__iadd__) else followed
        result = function(*args, **kwargs)
        if other is not None:
            self._met(function, kwargs, kept, other, result)
        if self.searching:
            for t in _tensors([result]):
                self._followed[id(t)] = weakref.ref(t)
        return result

    def _met(self, function, kwargs, followed: torch.Tensor, other: torch.Tensor, result) -> None:
        """Attention's part meets another tensor of its size: the stream, an MLP's output, or something that is not known here."""
        is_stream = self._is_stream(other)
        if function not in ADDITIONS or kwargs.get("alpha", 1) != 1:
            if is_stream:  # not a plain addition: nothing that can be called the stream after attention
                self.give_up()
            return
        if not is_stream:
            if self._summand is None:
                self._summand = followed
            return
        stream = result if self._summand is None else other.double() + self._summand.double().reshape(other.shape)
        on_stream = self._on_stream
        self.give_up()
        on_stream(stream)

    def _is_followed(self, tensor: torch.Tensor) -> bool:
        known = self._followed.get(id(tensor))
        return known is not None and known() is tensor

    def _is_stream(self, tensor: torch.Tensor) -> bool:
        for known in self._streams:
            t = known()
            if t is tensor or (t is not None and t.numel() == tensor.numel() and t.data_ptr() == tensor.data_ptr()):
                return True
        return False


def norms(stream: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """The L2 norm of the stream [1, T, D] or [T, D] at the positions `queries` [N]: float64 [N]."""
    rows = stream.reshape(-1, stream.shape[-1])
    return rows[queries.to(rows.device)].double().norm(dim=-1)


def _tensors(values) -> list[torch.Tensor]:
    """The tensors among arguments, inside lists, tuples and dictionaries too."""
    found = []
    for v in values:
        if isinstance(v, torch.Tensor):
            found.append(v)
        elif isinstance(v, (list, tuple)):
            found += _tensors(v)
        elif isinstance(v, dict):
            found += _tensors(v.values())
    return found
