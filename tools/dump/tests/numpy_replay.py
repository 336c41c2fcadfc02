"""An independent reader and replay of dumps: h5py and float64 numpy, one query and one head at a time, nothing of the package."""

import h5py
import numpy as np


def load(dataset) -> np.ndarray:
    """A dataset as float64; bfloat16 is stored as its bits."""
    x = dataset[()]
    if dataset.attrs.get("dtype") == "bfloat16":
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def replay(file: h5py.File, layer: int) -> np.ndarray:
    """The layer's output at the dump's output positions, float64 [M, D], from the format's definition."""
    g = file[f"layers/{layer}"]
    q, k, v, w_o = (load(g[n]) for n in ("q", "k", "v", "w_o"))
    queries = file["query_positions"][()].tolist()
    scale, cap, window = float(g.attrs["scale"]), float(g.attrs["softcap"]), int(g.attrs["sliding_window"])
    sinks = load(g["sinks"]) if "sinks" in g else None
    group = q.shape[0] // k.shape[0]
    out = []
    for p in file["output_positions"][()].tolist():
        first = max(0, p - window + 1) if window else 0
        heads = []
        for h in range(q.shape[0]):
            logits = k[h // group, first : p + 1] @ q[h, queries.index(p)] * scale
            if cap:
                logits = cap * np.tanh(logits / cap)
            weights = np.exp(logits - logits.max())
            total = weights.sum() + (np.exp(sinks[h] - logits.max()) if sinks is not None else 0.0)
            heads.append(weights / total @ v[h // group, first : p + 1])
        out.append(np.concatenate(heads) @ w_o)
    return np.array(out) + (load(g["b_o"]) if "b_o" in g else 0.0)


def errors(path) -> list[float]:
    """For each layer the relative Frobenius error of the replay against the stored output."""
    with h5py.File(path) as f:
        result = []
        for i in range(len(f["layers"])):
            expected = f[f"layers/{i}/output"][()].astype(np.float64)
            result.append(float(np.linalg.norm(replay(f, i) - expected) / np.linalg.norm(expected)))
        return result
