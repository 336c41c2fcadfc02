"""Llama's attention layers in float64 numpy, from a checkpoint's files: no torch, no transformers, nothing of the package."""

import json
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import load_file


def normalized(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """RMSNorm of [T, n]."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def rotated(x: np.ndarray, base: float) -> np.ndarray:
    """The rotary embedding of [heads, T, d], position t in row t; the halves of d are the pairs."""
    half = x.shape[2] // 2
    angle = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention: [T, H_q * d]."""
    group, tokens = len(q) // len(k), q.shape[1]
    hidden = np.triu(np.ones((tokens, tokens), bool), 1)
    heads = []
    for h, x in enumerate(q):
        logits = np.where(hidden, -np.inf, x @ k[h // group].T / np.sqrt(x.shape[1]))
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[h // group])
    return np.concatenate(heads, -1)


def layers(folder: Path, token_ids: list[int]) -> list[dict[str, np.ndarray]]:
    """q, k, v, w_o and output of every layer for one sequence, all positions."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: w.astype(np.float64) for name, w in load_file(folder / "model.safetensors").items()}
    base = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    epsilon, d = config["rms_norm_eps"], config["head_dim"]
    x, found = weights["model.embed_tokens.weight"][token_ids], []
    for i in range(config["num_hidden_layers"]):
        own = {name.removeprefix(f"model.layers.{i}."): w for name, w in weights.items() if name.startswith(f"model.layers.{i}.")}
        y = normalized(x, own["input_layernorm.weight"], epsilon)
        q, k, v = ((y @ own[f"self_attn.{name}_proj.weight"].T).reshape(len(x), -1, d).transpose(1, 0, 2) for name in "qkv")
        q, k, w_o = rotated(q, base), rotated(k, base), own["self_attn.o_proj.weight"].T
        output = attended(q, k, v) @ w_o
        found.append(dict(q=q, k=k, v=v, w_o=w_o, output=output))
        x = x + output
        y = normalized(x, own["post_attention_layernorm.weight"], epsilon)
        gate, up = (y @ own[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ own["mlp.down_proj.weight"].T
    return found


def write_dump(path: Path, folder: Path, token_ids: list[int], context: int) -> None:
    """The dump of a sequence whose first `context` tokens are the prompt, in float32, with all outputs."""
    with h5py.File(path, "w") as f:
        f.attrs.update(format="laprox-dump", version=1, context_length=context)
        f["query_positions"] = f["output_positions"] = np.arange(len(token_ids))
        f["token_ids"] = np.array(token_ids, np.int32)
        for i, layer in enumerate(layers(folder, token_ids)):
            group = f.create_group(f"layers/{i}")
            group.attrs.update(scale=layer["q"].shape[2] ** -0.5, softcap=0.0, sliding_window=0)
            for name, value in layer.items():
                group[name] = value.astype(np.float32)
