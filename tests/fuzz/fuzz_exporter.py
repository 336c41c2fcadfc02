#!/usr/bin/env python3
"""Attack the exporter with damaged inputs: arrays (.npz), prompts (JSON lines) and model configurations (config.json).

usage: fuzz_exporter.py [--count N] [--seed S] [--kind npz|jsonl|config]     (needs the laprox_dump package and PyTorch)

Each case is a sound input after one to three changes, which know its structure (a key, a shape, a number) or only its bytes. The
command runs in this process, so that thousands of cases take a minute or two. Of every case is asked: an exit code of 0, 2 or 3, or
5 where the stored outputs no longer follow from the arrays; one line on stderr and no traceback; no file under the output's name
unless the code is 0, and then one that opens; and no temporary file. A case is a function of its seed alone: to see a failing one
again, give --seed with the printed number and --count 1.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may ask a network; read when the libraries are imported

import h5py
import numpy as np
import torch
import transformers
from laprox_dump import cli

CODES = {"npz": (0, 2, 3, 5), "jsonl": (0, 2, 3), "config": (0, 2, 3)}
TOKENS, CONTEXT, VOCABULARY = 12, 8, 97

HUGE = int("9" * 400)
ODD = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    3,
    7,
    12,
    2**31,
    2**63,
    HUGE,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "\0",
    "ä\u2028",
    "../x",
    [],
    {},
    [[]],
    [1],
    {"a": 1},
]


def sound_arrays() -> dict:
    """Two layers whose outputs follow from them, in the layout of --from-npz."""
    rng, arrays = np.random.default_rng(3), {"context_length": np.int64(CONTEXT), "output_positions": np.arange(TOKENS)}
    seen = np.tril(np.ones((TOKENS, TOKENS), bool))
    for i in range(2):
        q, k, v = (rng.normal(size=(h, TOKENS, 4)).astype(np.float32) for h in (4, 2, 2))
        w_o, heads = rng.normal(size=(16, 6)).astype(np.float32), []
        for h in range(4):
            logits = np.where(seen, q[h] @ k[h // 2].T / 2, -np.inf)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[h // 2])
        layer = dict(q=q, k=k, v=v, w_o=w_o, output=(np.concatenate(heads, -1) @ w_o).astype(np.float32), scale=np.float64(0.5))
        arrays |= {f"layers.{i}.{name}": value for name, value in layer.items()}
    return arrays


def odd_array(rng: random.Random) -> np.ndarray:
    """Something that is no tensor of a layer."""
    return rng.choice(
        [
            lambda: np.array(rng.choice([np.nan, np.inf, -np.inf, -1.0, 0.0, 64.5, 1e300, 2**53])),
            lambda: np.array(rng.choice([1j, complex("nan")])),
            lambda: np.array(rng.choice([-(2**63), 2**63 - 1, 0, -1, 5]), dtype=np.int64),
            lambda: np.array(2**64 - 1, dtype=np.uint64),
            lambda: np.array(rng.choice(["text", "", "\0"])),
            lambda: np.array(b"bytes"),
            lambda: np.array([{}, []], dtype=object),
            lambda: np.zeros(3, dtype=[("a", "i4"), ("b", "f4")]),
            lambda: np.array("2020-01-01", dtype="datetime64[D]"),
            lambda: np.array([True, False]),
            lambda: np.zeros((0,) * rng.randrange(1, 4), np.float32),
            lambda: np.zeros((1,) * rng.randrange(5), np.float32),
            lambda: np.arange(TOKENS, dtype=rng.choice(["u2", "i1", ">i4", "u8", "f2", ">f4", "g"])),
        ]
    )()


def change_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    """The same array in another type, shape or order, or with single values replaced."""
    if not array.ndim:
        return odd_array(rng)
    how = rng.randrange(7)
    if how == 0:
        return array.astype(rng.choice(["f2", "f4", "f8", "i4", "u2", "c8", "?", ">f4", "g"]))
    if how == 1:
        return np.moveaxis(array, 0, -1)
    if how == 2:
        return array[tuple(slice(rng.randrange(0, 2), None) for _ in array.shape)]
    if how == 3:
        return array.reshape(-1)
    if how == 4:
        return array[None] if rng.random() < 0.5 else np.concatenate([array, array])
    changed = array.copy()
    changed.reshape(-1)[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, 1e30, 0, -1]) if array.dtype.kind == "f" else -1
    return changed[::-1] if how == 6 else changed


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert or overwrite some bytes."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 8, 64])
        how = rng.randrange(6)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + length] = bytes(rng.choice([0, 0x7F, 0xFF]) for _ in range(length))
        elif how == 2:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = rng.randbytes(length)
        elif how == 4:
            data[at:at] = data[max(0, at - length) : at]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def make_npz(rng: random.Random, folder: Path, sound: dict) -> list:
    """A damaged arrays.npz; the command's arguments."""
    arrays = dict(sound)
    by_bytes = rng.random() < 0.35
    for _ in range(0 if by_bytes else rng.randrange(1, 4)):
        names = sorted(arrays)
        name, how = rng.choice(names), rng.randrange(6)
        if how == 0:
            del arrays[name]
        elif how == 1:
            arrays[name] = odd_array(rng)
        elif how == 2:
            numbers = ("context_length", "query_positions", "output_positions", "token_ids", "model", "prompt", "s_aux")
            layer = rng.choice(["0", "1", "2", "00", "9" * 30, "-1"])
            parts = ("scale", "softcap", "sliding_window", "model_layer", "b_o", "sinks", "bias")
            arrays[rng.choice([*numbers, f"layers.{layer}.{rng.choice(parts)}"])] = odd_array(rng)
        elif how == 3:
            arrays[rng.choice(names)] = arrays[name]
        else:
            arrays[name] = change_array(rng, arrays[name])
        if not arrays:
            break
    path = folder / "in.npz"
    (np.savez_compressed if rng.random() < 0.3 else np.savez)(path, **arrays)
    if by_bytes:
        path.write_bytes(damage_bytes(rng, path.read_bytes()))
    return ["--from-npz", path, "-o", folder / "out.h5"]


def odd_json(rng: random.Random) -> str:
    """A JSON value as text, or something close to one."""
    special = [
        "NaN",
        "-Infinity",
        "9" * 5000,
        "1e400",
        "[" * 5000,
        '{"a":' * 3000,
        '"\\ud800"',
        '"\\u0000"',
        "nul",
        '"',
        "\ufeff{}",
    ]
    return rng.choice(special) if rng.random() < 0.35 else json.dumps(rng.choice(ODD))


def make_jsonl(rng: random.Random, folder: Path, model: Path) -> list:
    """A damaged prompts file of one to three lines; the command's arguments."""
    lines = []
    for number in range(rng.randrange(1, 3)):
        entry = {"id": json.dumps(f"p{number}"), "token_ids": json.dumps([rng.randrange(3, VOCABULARY) for _ in range(6)])}
        if rng.random() < 0.5:
            entry["continuation"] = "[5, 6]"
        pairs = list(entry.items())
        for _ in range(rng.randrange(0, 3)):
            key = rng.choice(["id", "prompt", "token_ids", "question", "continuation", "promt"])
            pairs = [pair for pair in pairs if pair[0] != key or rng.random() < 0.1] + [(key, odd_json(rng))]
        if rng.random() < 0.3:
            pairs.append(("token_ids", json.dumps([5, rng.choice([-1, VOCABULARY, 2**31, 2**64, HUGE, 6]), 7])))
        lines.append("{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}")
    data = rng.choice(["\n", "\r\n", "\n\n", "\u2028"]).join(lines).encode("utf-8", "surrogatepass")
    path = folder / "p.jsonl"
    path.write_bytes(damage_bytes(rng, data) if rng.random() < 0.4 else data)
    options = [rng.choice(["--quiet", "--force", "--skip-existing", "--chat-template"])] if rng.random() < 0.4 else []
    return [model, "--prompt-file", path, "-o", folder / "out", "--decode", "1", *options]


def make_config(rng: random.Random, folder: Path, model: Path) -> list:
    """A tiny checkpoint with a damaged config.json; the command's arguments."""
    (folder / "m").mkdir()
    os.link(model / "model.safetensors", folder / "m" / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    path = folder / "m" / "config.json"
    if rng.random() < 0.25:
        path.write_bytes(damage_bytes(rng, json.dumps(config).encode()))
    else:
        for _ in range(rng.randrange(1, 3)):
            target = config
            key = rng.choice(sorted(target))
            while isinstance(target.get(key), dict) and target[key] and rng.random() < 0.8:
                target = target[key]
                key = rng.choice(sorted(target))
            how = rng.randrange(4)
            if how == 0:
                del target[key]
            elif how == 1 and isinstance(target[key], int) and not isinstance(target[key], bool):
                target[key] = rng.choice([target[key] + 1, target[key] * 2, target[key] // 2, -target[key], float(target[key])])
            else:
                target[key] = copy.deepcopy(rng.choice([x for x in ODD if not (isinstance(x, int) and abs(x) > 2**20)]))
        if rng.random() < 0.3:
            kind = rng.choice(["yarn", "dynamic", "longrope", "linear", "llama3", "default", "", 3])
            config["rope_scaling"] = {"rope_type": kind, "factor": rng.choice([2.0, 0, -1.0, "4", None])}
        path.write_text(json.dumps(config))
    (folder / "p.jsonl").write_text('{"id": "a", "token_ids": [5, 6, 7, 8, 9]}')
    return [folder / "m", "--prompt-file", folder / "p.jsonl", "-o", folder / "out", "--decode", "1"]


def run(arguments: list) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command inside this process; an escaped exception is 999 with its traceback as stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([*map(str, arguments)])
        except SystemExit as e:  # argparse leaves this way
            code = e.code
        except BaseException:
            return 999, out.getvalue(), traceback.format_exc()
    return code, out.getvalue(), err.getvalue()


def complaint(kind: str, folder: Path, code: int, out: str, err: str) -> str | None:
    """What is wrong with a case's outcome, or None."""
    dumps = [*folder.glob("out.h5"), *folder.glob("out/*.h5")]
    if code not in CODES[kind]:
        return f"exit code {code}"
    if "Traceback" in err or (code and (err.count("laprox-dump: ") < 1 or out and kind != "jsonl")):
        return "no clear message"
    if left := [p.name for p in folder.rglob(".*.partial")]:
        return f"{left[0]} was left"
    if code and kind != "jsonl" and dumps:
        return "a dump was left by a failure"
    for path in dumps:  # of several prompts, those before the failing one stay, whole
        with h5py.File(path) as f:
            if f.attrs["format"] != "laprox-dump" or not len(f["layers"]):
                return f"{path.name} is no whole dump"
    return None if code or dumps else "exit code 0 without a dump"


def tiny_model(folder: Path) -> Path:
    """A checkpoint that runs in milliseconds."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def main() -> int:
    """Run the cases; 1 if one of them failed."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--count", type=int, default=500, help="cases (default 500)")
    p.add_argument("--seed", type=int, default=1, help="number of the first case (default 1)")
    p.add_argument("--kind", choices=sorted(CODES), help="only inputs of this kind (default: all in turn)")
    args = p.parse_args()
    torch.set_num_threads(1)
    sound, kinds, codes, failures = sound_arrays(), [args.kind] if args.kind else sorted(CODES), Counter(), 0
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory() as place:
        model = tiny_model(Path(place) / "model")
        for seed in range(args.seed, args.seed + args.count):
            kind, rng, folder = kinds[seed % len(kinds)], random.Random(seed), Path(place) / "case"
            folder.mkdir()
            make = {"npz": make_npz, "jsonl": make_jsonl, "config": make_config}[kind]
            arguments = make(rng, folder, sound if kind == "npz" else model)
            code, out, err = run(arguments)
            codes[kind, code] += 1
            if wrong := complaint(kind, folder, code, out, err):
                failures += 1
                print(f"case {seed} ({kind}): {wrong}\n{err.strip()[-2000:]}", file=sys.stderr)
            shutil.rmtree(folder)
    print(f"{args.count} cases, {failures} failures; " + ", ".join(f"{k} exit {c}: {n}" for (k, c), n in sorted(codes.items())))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
