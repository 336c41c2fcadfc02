"""What the arrays of a layer must agree on, whether they lie in memory or in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Shape = tuple[int, ...]
#: refuse(array, expected, found) raises.
Refuse = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Geometry:
    """The sizes of one attention layer, and how many tokens and queries its arrays hold."""

    query_heads: int
    kv_heads: int
    head_size: int
    value_size: int
    model_size: int
    tokens: int
    queries: int


def geometry(q: Shape, k: Shape, v: Shape, w_o: Shape, refuse: Refuse) -> Geometry:
    """The sizes of a layer from the shapes q [H_q, N, d], k [H_kv, T, d], v [H_kv, T, d_v] and w_o [H_q * d_v, D]."""
    for name, shape, meaning in (
        ("q", q, "[H_q, N, d]"),
        ("k", k, "[H_kv, T, d]"),
        ("v", v, "[H_kv, T, d_v]"),
        ("w_o", w_o, "[H_q * d_v, D]"),
    ):
        if len(shape) != meaning.count(",") + 1 or 0 in shape:
            refuse(name, f"shape {meaning}", f"shape {list(shape)}")
    sizes = Geometry(q[0], k[0], q[2], v[2], w_o[1], k[1], q[1])
    if k[2] != sizes.head_size:
        refuse("k", f"shape [H_kv, T, d] with d = {sizes.head_size}, as q has", f"shape {list(k)}")
    if sizes.query_heads % sizes.kv_heads != 0:
        refuse("k", "H_q to be a multiple of H_kv", f"H_q = {sizes.query_heads}, H_kv = {sizes.kv_heads}")
    if v[:2] != k[:2]:
        refuse("v", f"shape [H_kv, T, d_v] = [{k[0]}, {k[1]}, any], as k has", f"shape {list(v)}")
    if w_o[0] != sizes.query_heads * sizes.value_size:
        refuse("w_o", f"shape [H_q * d_v, D] = [{sizes.query_heads * sizes.value_size}, any]", f"shape {list(w_o)}")
    return sizes


def check_positions(positions: list[int], tokens: int, name: str, refuse: Refuse) -> None:
    """Positions are strictly ascending and each is below T."""
    for i, position in enumerate(positions):
        if not 0 <= position < tokens:
            refuse(name, f"positions from 0 to T - 1 = {tokens - 1}", f"{position} at element {i}")
        if i > 0 and position <= positions[i - 1]:
            refuse(name, "strictly ascending positions", f"{position} after {positions[i - 1]} at element {i}")
