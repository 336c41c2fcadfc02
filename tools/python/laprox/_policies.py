"""The catalogue of policies, and policies written in Python."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import _core
from ._arguments import LARGEST, as_index, brief, text
from ._arrays import as_array
from ._errors import UsageError


@dataclass(frozen=True)
class PolicyInfo:
    """What the catalogue says of one policy."""

    name: str
    kind: str  #: "scorer", "method" (a published composition) or "own"
    summary: str
    paper: str = ""
    description: str = ""
    allocator: str = "head"  #: how it splits the budget unless "+allocator" says otherwise
    needs: str = ""  #: what it reads of a dump
    is_oracle: bool = False  #: reads the very queries that judge it
    options: tuple[dict[str, Any], ...] = field(default=(), repr=False)


class OwnPolicy:
    """A policy written in Python. It can be called like the function it was made from; laprox.policy makes one."""

    def __init__(self, function: Callable[..., Any], name: str, queries: int, pins: tuple[int, int], allocator: str | None) -> None:
        self.function, self.name, self.queries, self.pins = function, name, queries, pins
        parameters = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        if not 1 <= len(parameters) <= 2:
            raise UsageError(
                f"policy '{name}': expected a function of (layer) or (layer, tokens), found {len(parameters)} parameters"
            )
        self.depends_on_budget = len(parameters) == 2
        self.allocator = allocator or "head"
        self.__doc__ = function.__doc__
        self.__name__ = name

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __repr__(self) -> str:
        return f"<laprox policy {self.name}, written in Python>"

    def _policy(self, text: str) -> _core.Policy:
        return _core.own_policy(text, self._scores, self.queries, *self.pins, self.depends_on_budget, self.allocator)

    def _scores(self, layer: _core.PolicyLayer, tokens: int | None) -> np.ndarray:
        """What the function makes of a layer, as float64 scores [kv_heads, C]."""
        answer = self.function(layer, tokens) if self.depends_on_budget else self.function(layer)
        name, shape = f"policy '{self.name}'", (layer.kv_heads, layer.tokens)
        values = np.asarray(answer) if isinstance(answer, (list, tuple)) else answer
        if str(getattr(values, "dtype", "")) in ("bool", "torch.bool"):
            return self._mask(np.asarray(values), shape, tokens)
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            self._check_whole(values, layer.index)
            values = values.astype(np.float64)
        array, element_type = as_array(values, name, 2, "[kv_heads, tokens]")
        if array.shape != shape:
            raise UsageError(
                f"{name}: expected scores [kv_heads, tokens] = {list(shape)} of layer {layer.index}, "
                f"found shape {list(array.shape)}"
            )
        if element_type == "bfloat16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        scores = np.ascontiguousarray(array, dtype=np.float64)
        for head, token in np.argwhere(~np.isfinite(scores))[:1]:
            raise UsageError(
                f"{name}: expected finite scores of layer {layer.index}, found {scores[head, token]} at KV head {head}, "
                f"token {token}"
            )
        return scores

    def _check_whole(self, scores: np.ndarray, layer: int) -> None:
        """Raises UsageError where float64 would make ties of whole numbers."""
        largest = max((abs(int(scores.max())), abs(int(scores.min())))) if scores.size else 0
        if largest > 2**53:
            raise UsageError(
                f"policy '{self.name}': expected whole scores up to 2**53 of layer {layer}, which float64 tells apart, found one "
                f"of magnitude {largest}; subtract an offset, or rank them"
            )

    def _mask(self, mask: np.ndarray, shape: tuple[int, int], tokens: int | None) -> np.ndarray:
        """Kept tokens as scores, so that the allocator 'layer' keeps exactly these."""
        name = f"policy '{self.name}'"
        if tokens is None or self.allocator != "layer" or self.pins != (0, 0):
            raise UsageError(
                f"{name}: a mask of kept tokens belongs to one budget and says itself how a layer's is split; take the "
                'budget as a second argument (tokens per KV head), say allocator="layer" and pin nothing'
            )
        if mask.shape != shape:
            raise UsageError(f"{name}: expected a mask [kv_heads, tokens] = {list(shape)}, found shape {list(mask.shape)}")
        if int(mask.sum()) != tokens * shape[0]:
            raise UsageError(
                f"{name}: expected a mask that keeps {tokens} tokens for each of {shape[0]} KV heads, "
                f"{tokens * shape[0]} in all, found {int(mask.sum())}"
            )
        return np.ascontiguousarray(mask, dtype=np.float64)


_own: dict[str, OwnPolicy] = {}


def policy(
    name: str, *, pins: int | tuple[int, int] = 0, queries: int | str = 0, allocator: str | None = None
) -> Callable[[Callable[..., Any]], OwnPolicy]:
    """Makes a function a policy, which sweeps know by `name` from then on.

    ::

        @laprox.policy("loud-values", queries=32, pins=(4, 32))
        def loud_values(layer):
            attention = layer.attention_sums(32) * layer.value_norms()        # [query_heads, C]
            return attention.reshape(layer.kv_heads, layer.group, -1).max(1)  # [kv_heads, C]

        laprox.sweep(dump, [loud_values, "loud-values+ada", "snapkv"], ["5%", "10%"])

    Parameters
    ----------
    name : str
        How tables and policy strings call it. A second policy of that name replaces the first; built-in names are refused.
    pins : int or (int, int)
        Tokens that are always kept and count inside the budget: the first and the last ones. A single number: the last ones.
    queries : int or "all"
        The prompt queries that the function reads: the last so many, or all. Held-out queries are never shown.
    allocator : str, optional
        Which split of the budget is the policy's own, unless "+allocator" says otherwise. Default: "head", an equal share each.

    The function takes a layer (laprox.PolicyLayer) and returns finite scores [kv_heads, C], of which the highest are kept: an
    array of NumPy or PyTorch. A function of (layer, tokens) is called for every budget, in tokens per KV head. With
    allocator="layer" it may return a mask [kv_heads, C] of bool instead, which keeps tokens * kv_heads entries of the layer.

    Raises UsageError where the name is taken or the function's parameters are others.
    """
    spelled = text(name, "name", '"loud-values"').strip().replace("_", "-")
    if not re.fullmatch(r"[a-z0-9-]{1,100}", spelled):
        raise UsageError(f"policy {brief(name)}: expected a name of lower-case letters, digits and -, at most 100")
    if spelled == "all" or spelled in {entry["name"] for entry in [*_core.describe_scorers(), *_core.describe_methods()]}:
        raise UsageError(f"policy '{name}': a built-in policy has this name; choose another")
    spread = pins if isinstance(pins, (tuple, list)) else (0, pins)
    ends = tuple(as_index(pin) for pin in spread)
    if len(ends) != 2 or any(end is None or not 0 <= end <= LARGEST for end in ends):
        raise UsageError(f"policy '{name}': expected pins of 0 tokens or more, a number or two, found {brief(pins)}")
    if allocator is not None:
        text(allocator, "allocator", '"ada"')
    asked = -1 if isinstance(queries, str) and queries == "all" else as_index(queries)
    if asked is None or asked > LARGEST or (asked < 0 and not isinstance(queries, str)):
        raise UsageError(
            f"policy '{name}': queries: expected a number of the last prompt queries or \"all\", found {brief(queries)}"
        )

    def decorate(function: Callable[..., Any]) -> OwnPolicy:
        own = OwnPolicy(function, spelled, asked, ends, allocator)
        own._policy(spelled)  # an unknown allocator is refused here
        _own[spelled] = own
        return own

    return decorate


PolicyLike = str | OwnPolicy | _core.Policy


def parse(spelling: PolicyLike) -> _core.Policy:
    """The policy that a string, a function made by laprox.policy, or a policy itself stands for."""
    if isinstance(spelling, _core.Policy):
        return spelling
    if isinstance(spelling, OwnPolicy):
        return spelling._policy(spelling.name)
    if not isinstance(spelling, str):
        raise UsageError(f'expected a policy such as "snapkv+ada" or a function made by laprox.policy, found {spelling!r}')
    name = spelling.split(":")[0].split("+")[0].strip().replace("_", "-")
    return _own[name]._policy(spelling) if name in _own else _core.parse_policy(spelling)


def parse_many(spellings: PolicyLike | Iterable[PolicyLike]) -> list[_core.Policy]:
    """Several policies; "a,b" are two and "all" is the whole catalogue. Raises UsageError where one is given twice."""
    if isinstance(spellings, (str, OwnPolicy, _core.Policy)):
        spellings = [spellings]
    if not isinstance(spellings, Iterable):
        raise UsageError(f"policies: expected a policy or a list of policies, found {brief(spellings)}")
    words: list[PolicyLike] = []
    for spelling in spellings:
        words.extend(_core.split_policies(spelling) if isinstance(spelling, str) else [spelling])
    parsed: list[_core.Policy] = []
    for word in words:
        names = [entry.name for entry in policies() if entry.kind != "own"] if word == "all" else [word]
        parsed.extend(parse(name) for name in names)
    known: dict[str, str] = {}  # labels by themselves and by what they stand for
    for policy in parsed:
        other = known.get(policy.label, known.get(policy.spec))
        if other is not None:
            raise UsageError(f"policy '{policy.label}' is given twice" + (f" (as '{other}' too)" if other != policy.label else ""))
        known[policy.label] = known[policy.spec] = policy.label
    return parsed


def policies() -> list[PolicyInfo]:
    """The whole catalogue: scorers, published compositions, and the policies that laprox.policy made."""
    found = [
        PolicyInfo(
            e["name"],
            "scorer",
            e["summary"],
            e["paper"],
            e["description"],
            e["default_allocator"],
            e["needs"],
            e["is_oracle"],
            tuple(e["options"]),
        )
        for e in _core.describe_scorers()
    ]
    found += [
        PolicyInfo(
            e["name"],
            "method",
            e["summary"],
            e["paper"],
            f"stands for {e['policy']}",
            e["policy"].split("+")[-1].split(":")[0] if "+" in e["policy"] else "head",
        )
        for e in _core.describe_methods()
    ]
    found += [
        PolicyInfo(own.name, "own", (own.__doc__ or "").strip().split("\n")[0], allocator=own.allocator) for own in _own.values()
    ]
    return found


def allocators() -> list[dict[str, Any]]:
    """The budget splits that may stand behind "+": name, summary, scope, options."""
    return list(_core.describe_allocators())


def parse_budgets(budgets: str | int | Sequence[str | int]) -> list[str]:
    """Budgets as the library reads them: "5%", "128" (tokens per KV head), "64MiB". "5%,128" are two."""
    expected = 'budgets: expected "5%", 128 (tokens per KV head), "64MiB" or a list of these'
    one = isinstance(budgets, (str, bytes)) or as_index(budgets) is not None
    if not one and (isinstance(budgets, float) or not isinstance(budgets, Iterable) or getattr(budgets, "ndim", 1) == 0):
        raise UsageError(f"{expected}, found {brief(budgets)}")
    words = []
    for budget in [budgets] if one else budgets:
        tokens = as_index(budget)
        if tokens is None and not isinstance(budget, str):
            raise UsageError(f"{expected}, found {brief(budget)}")
        words += [word.strip() for word in budget.split(",")] if tokens is None else [str(tokens)]
    known: dict[tuple[int, float], str] = {}
    for word in words:
        same = known.setdefault(_core.budget_amount(word), word)
        if same is not word:
            raise UsageError(f"budget '{word}' is given twice" + (f" (as '{same}' too)" if same != word else ""))
    return words
