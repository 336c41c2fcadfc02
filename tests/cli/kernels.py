"""Foreign kernels for the verifier: LaProx's primitives in numpy at low precision, right or with one planted fault.

They share nothing with the C++ code. A kernel rounds its inputs to the type, computes in float32 as tensor-core kernels do
(`eager`: rounds every operation's result too, as plain PyTorch does) and rounds its results.
"""

import dumps
import h5py
import numpy as np
import oracle

WINDOW = oracle.WINDOW

ADVERSARIAL = ["huge-logits", "negative-rows", "giant-key", "equal-tokens", "cancelling-values"]  # kinds of laprox synth

FAULTS = [
    "one key swapped",
    "scale missing",
    "causal mask one too far",
    "causal mask one too short",
    "W_o of the next head",
    "query heads interleaved over KV heads",
    "window one too short",
    "window one too early",
    "pooling divides by the neighbours",
    "pooling reaches into the window",
]


def rounded(values, dtype):
    """float32 values that the type can hold."""
    values = np.asarray(values, np.float32)
    if dtype == "bfloat16":
        return (dumps.bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(dtype).astype(np.float32)


class Kernel:
    """fault: one of FAULTS or None. mask: what hidden logits become. logit_dtype: where logits are rounded to, if anywhere."""

    def __init__(self, dump, dtype, fault=None, eager=False, mask=-np.inf, logit_dtype=None):
        self.dump, self.dtype, self.fault, self.mask = dump, dtype, fault, mask
        self.logit_dtype = dtype if eager else logit_dtype
        self.round = (lambda x: rounded(x, dtype)) if eager else (lambda x: np.asarray(x, np.float32))

    def spread(self, tensor, layer):
        """[H_kv, ...] -> [H_q, ...]"""
        if self.fault == "query heads interleaved over KV heads":
            return np.concatenate([tensor] * layer.group)
        return np.repeat(tensor, layer.group, 0)

    def keys(self, layer):
        k = rounded(layer.k, self.dtype)
        if self.fault == "one key swapped":
            a, b = self.dump.context // 2, self.dump.context // 2 + 9
            k[0, [a, b]] = k[0, [b, a]]
        return k

    def weights(self, layer, rows):
        q, k = rounded(layer.q[:, rows], self.dtype), self.spread(self.keys(layer), layer)
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self.round(q @ k.transpose(0, 2, 1))
            if self.fault != "scale missing":
                logits = self.round(logits * np.float32(layer.scale))
            if self.logit_dtype:
                logits = rounded(logits, self.logit_dtype)
            shift = {"causal mask one too far": 1, "causal mask one too short": -1}.get(self.fault, 0)
            position = self.dump.positions[rows][:, None] + shift
            visible = np.arange(k.shape[1])[None] <= position
            logits = np.where(visible[None], logits, np.float32(self.mask))
            exp = np.exp(logits - logits.max(-1, keepdims=True))
            return self.round(exp / exp.sum(-1, keepdims=True))

    def window_rows(self):
        first = {"window one too short": 1, "window one too early": -1}.get(self.fault, 0)
        last = -1 if self.fault == "window one too early" else 0
        context = self.dump.context
        return self.dump.rows(np.arange(context - WINDOW + first, context + last))

    def value_norms(self, layer):
        blocks = rounded(layer.w_o, self.dtype).reshape(layer.q.shape[0], layer.v.shape[-1], -1)
        if self.fault == "W_o of the next head":
            blocks = np.roll(blocks, -1, 0)
        v = self.spread(rounded(layer.v, self.dtype), layer)[:, : self.dump.context]
        return self.round(np.linalg.norm(self.round(v @ blocks), axis=-1))

    def pooled(self, norms, prefix):
        half = oracle.KERNEL // 2
        reach = norms.shape[1] if self.fault == "pooling reaches into the window" else prefix
        windows = [norms[:, max(0, i - half) : min(reach, i + half + 1)] for i in range(prefix)]
        mean = self.fault == "pooling divides by the neighbours"
        return np.stack([w.mean(-1) if mean else w.sum(-1) / np.float32(oracle.KERNEL) for w in windows], -1)

    def layer(self, layer):
        """All of a candidate's datasets for one layer, in float32 and not yet stored: scores are laprox's."""
        context, prefix = self.dump.context, self.dump.context - WINDOW
        weights = self.weights(layer, self.window_rows())[:, :, :context]
        norms, sums = self.round(np.sqrt((weights**2).sum(1))), self.round(weights.sum(1))
        values = self.value_norms(layer)
        attention = np.concatenate([self.round(self.pooled(norms, prefix)), norms[:, prefix:]], 1)
        scores = self.round(oracle.group_mean(self.round(attention * values), layer))
        decoded = self.weights(layer, self.dump.decoded)
        # A tensor core reads the weights in the type, and adds up in float32.
        heads = self.round(rounded(decoded, self.dtype) @ self.spread(rounded(layer.v, self.dtype), layer))
        w_o = rounded(layer.w_o, self.dtype)
        if self.fault == "W_o of the next head":
            w_o = np.roll(w_o.reshape(layer.q.shape[0], layer.v.shape[-1], -1), -1, 0).reshape(w_o.shape)
        output = rounded(heads.transpose(1, 0, 2).reshape(heads.shape[1], -1), self.dtype) @ w_o
        return dict(scores=scores, column_norms=norms, column_sums=sums, value_norms=values, output=output)


def run(dump, dtype, layers=None, **options):
    """{layer: {dataset: values}}"""
    kernel = Kernel(dump, dtype, **options)
    return {
        i: {name: rounded(x, dtype) for name, x in kernel.layer(dump.layers[i]).items()} for i in layers or range(len(dump.layers))
    }


def laprox_kept(dump, results, allocator, budgets):
    """Kept masks [budgets, H_kv, C] of every layer from a kernel's own scores of all layers."""
    prefix = dump.context - WINDOW
    scores = [np.asarray(results[i]["scores"], np.float64)[:, :prefix] for i in range(len(dump.layers))]
    kept = [[] for _ in dump.layers]
    for budget in budgets:
        for i, (table, counts) in enumerate(zip(scores, oracle.split(scores, budget - WINDOW, allocator))):
            mask = np.zeros((len(table), dump.context), np.uint8)
            mask[:, prefix:] = 1
            for head, count in enumerate(counts):
                mask[head, oracle.best_first(table[head])[:count]] = 1
            kept[i].append(mask)
    return {i: np.stack(masks) for i, masks in enumerate(kept)}


def write(path, dump, results, dtype, kept=None, **attributes):
    """A candidate file. attributes: policy, budgets, precision ..."""
    with h5py.File(path, "w") as file:
        file.attrs.update(format="laprox-scores", version=1, **attributes)
        if any("output" in datasets for datasets in results.values()):
            file["output_positions"] = dump.positions[dump.decoded]
        for i, datasets in results.items():
            group = file.create_group(f"layers/{i}")
            for name, values in datasets.items():
                dumps.put(group, name, values, dtype)
        for i, masks in (kept or {}).items():
            file[f"layers/{i}/kept"] = masks
    return path
