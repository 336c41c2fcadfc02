"""The proof: recompute a layer's output from what a dump holds, in float32, and compare it with the model's own.

This file shares no code with the capture: it starts from the tensors and numbers of a `Layer` and the format's definition alone.
"""

import torch

from .errors import ProofError
from .layer import Layer, Positions

# Largest accepted error (see `output_error`) by the element type of the file. The model rounds its head outputs and its layer
# output to that type once each (unit roundoff 6e-8, 4.9e-4, 3.9e-3), a fused kernel also its probabilities; sums that cancel
# enlarge the quotient. The limits are 14 and 9 roundoffs of the half types, float32 more: there logits of a few hundred lose
# digits before exp. A layer whose every row is within t is within sqrt(2) t as a whole, which `laprox inspect` measures and
# accepts up to 1e-3, 1e-2 and 5e-2: what is written here passes there.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 7e-3, torch.bfloat16: 3.5e-2}

# Logits held at once, in elements: bounds the memory of a replay at about a quarter of a GiB, whatever the number of tokens.
BLOCK = 1 << 24


def head_outputs(layer: Layer, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The attention of some stored queries: float32 [len(rows), H_q * d_v].

    `rows` are indices into the stored queries, `at` their absolute positions, both int64.
    """
    h_kv, tokens, _ = layer.k.shape
    group = layer.q.shape[0] // h_kv
    key_at = torch.arange(tokens, device=layer.k.device)
    seen = key_at[None, :] <= at[:, None]
    if layer.sliding_window:
        seen &= key_at[None, :] > at[:, None] - layer.sliding_window
    heads = []
    for g in range(h_kv):
        own = slice(g * group, (g + 1) * group)
        logits = layer.q[own][:, rows].float() @ layer.k[g].float().T * layer.scale
        if layer.softcap:
            logits = layer.softcap * torch.tanh(logits / layer.softcap)
        logits = logits.masked_fill(~seen, float("-inf"))
        top = logits.amax(-1, keepdim=True)
        sink = None if layer.sinks is None else layer.sinks[own].float()[:, None, None]
        if sink is not None:
            top = torch.maximum(top, sink)
        weights = torch.exp(logits - top)
        total = weights.sum(-1, keepdim=True)
        if sink is not None:
            total = total + torch.exp(sink - top)
        heads.append(weights @ layer.v[g].float() / total)  # [group, rows, d_v]
    return torch.cat(heads).transpose(0, 1).reshape(len(rows), -1)


def replay(layer: Layer, positions: Positions) -> torch.Tensor:
    """The layer's output at the dump's output positions, float32 [M, D]."""
    device = layer.q.device
    rows, at = positions.output_rows().to(device), positions.outputs.to(device)
    group = layer.q.shape[0] // layer.k.shape[0]
    step = max(1, BLOCK // (group * positions.tokens))
    w_o, out = layer.w_o.float(), []
    for a, b in zip(rows.split(step), at.split(step)):
        out.append(head_outputs(layer, a, b) @ w_o)
    result = torch.cat(out)
    return result if layer.b_o is None else result + layer.b_o.float()


def output_error(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, int]:
    """The worst row's error and its index: max over rows of ||found - expected|| / max(||expected||, RMS row norm).

    The floor at the layer's RMS row norm keeps a row that is almost zero from deciding.
    """
    expected = expected.float()
    norm = expected.norm(dim=1)
    floor = norm.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    error = (found - expected).norm(dim=1) / norm.clamp_min(floor)
    worst = int(error.argmax())
    return float(error[worst]), worst


def prove(where: str, layer: Layer, positions: Positions, tolerance: float) -> float:
    """Replay `layer` and return its error; throws ProofError above `tolerance` (a NaN counts as above)."""
    error, worst = output_error(replay(layer, positions), layer.output)
    if not error <= tolerance:
        raise ProofError(
            f"{where}: the output recomputed from what was captured differs from the model's own by {error:.2e} "
            f"at position {int(positions.outputs[worst])}, above the tolerance {tolerance:g}; nothing was written. "
            "The model does something to its attention that a dump cannot express, or loses more precision than its type explains "
            "(try --dtype float32)"
        )
    return error
