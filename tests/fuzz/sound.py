"""The sound files that the fuzzer damages: small, made by laprox itself, and between them with every feature of the formats."""

import random
import subprocess
from pathlib import Path

import h5py

TINY = ("--preset", "tiny", "--tokens", 40, "--decode", 4, "--layers", 2)
POLICY = "snapkv:window=4,kernel=3"
LABELS = "recent,random,oracle,knorm"


class SoundFiles:
    """Paths by kind. `dump` is the one that commands are given beside a damaged file of another kind."""

    def __init__(self, binary: str, folder: Path):
        self.binary, self.folder = binary, folder
        self.dump = self.synth("plain.h5", "--dtype", "float32", "--seed", 1)
        rich = self.synth("rich.h5", "--dtype", "bfloat16", "--sinks", "--bias", "--softcap", 20, "--sliding-window", 30)
        self.with_outputs(rich)
        self.dumps = [self.dump, rich, self.rewritten(rich, "latest.h5"), self.synth("half.h5", "--queries", "recent:8")]
        self.other = self.synth("other.h5", "--seed", 2)
        self.reports = [self.sweep("kept.h5", self.dump, "--save-kept"), self.sweep("plain-report.h5", rich)]
        self.reports.append(self.sweep("two.h5", self.dump, rich))
        self.reports.append(self.with_texts(self.reports[0], "texts.h5"))
        self.report_of_other = self.sweep("report-of-other.h5", self.other)
        self.scores = [self.score("scores.h5", "--budget", "50%"), self.score("all.h5")]
        self.masks = self.only_kept(self.scores[0])
        self.free = self.of_any_dump(self.scores[0])
        self.candidates = [*self.scores, self.masks, self.free]
        self.config = self.text(
            "sweep.toml", f'[sweep]\npolicy = ["{LABELS}"]\nbudget = ["50%"]\nqueries = "decoded"\nquiet = true\n'
        )
        self.list = self.text("dumps.txt", f"{self.dump}\n\n{rich}\n")

    def laprox(self, *arguments) -> None:
        done = subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{arguments}: {done.stderr}")

    def synth(self, name: str, *options) -> Path:
        self.laprox("synth", "-o", self.folder / name, *TINY, *options)
        return self.folder / name

    def sweep(self, name: str, *arguments) -> Path:
        self.laprox("sweep", *arguments, "--policy", LABELS, "--budget", "50%,60%", "-o", self.folder / name)
        return self.folder / name

    def score(self, name: str, *options) -> Path:
        self.laprox("score", self.dump, "--policy", POLICY, "-o", self.folder / name, *options)
        return self.folder / name

    def text(self, name: str, content: str) -> Path:
        (self.folder / name).write_text(content)
        return self.folder / name

    def with_outputs(self, dump: Path) -> None:
        """Stores the exact outputs in the dump, so that there is a self-check, and what else is optional."""
        exact = self.folder / "exact.h5"
        self.laprox("score", dump, "--policy", "recent", "-o", exact)
        with h5py.File(exact) as source, h5py.File(dump, "r+") as file:
            file["output_positions"] = source["output_positions"][()]
            file["token_ids"] = list(range(len(file["query_positions"])))
            for layer in file["layers"]:
                file[f"layers/{layer}/output"] = source[f"layers/{layer}/output"][()].astype("f4")
                file[f"layers/{layer}/rope_inv_freq"] = [1.0, 0.1]

    def rewritten(self, dump: Path, name: str) -> Path:
        """The same in HDF5's newest format, whose headers and indices are of other kinds, with texts of variable length."""
        with h5py.File(dump) as source, h5py.File(self.folder / name, "w", libver="latest") as file:
            for member in source:
                source.copy(member, file)
            for key, value in source.attrs.items():
                file.attrs[key] = value.decode() if isinstance(value, bytes) else value
        return self.folder / name

    def with_texts(self, report: Path, name: str) -> Path:
        """The report with texts of variable length, as netCDF4 and h5py write them: they lie in a heap of their own."""
        path = self.folder / name
        path.write_bytes(report.read_bytes())
        with h5py.File(path, "r+") as file:
            for member in ("policy_spec", "dump_model", "dump_sha256"):
                texts = file[member].asstr()[()]
                del file[member]
                file.create_dataset(member, data=texts, dtype=h5py.string_dtype())
            for key in ("backend", "queries", "softmax"):
                file.attrs[key] = file.attrs[key].decode()
        return path

    def only_kept(self, scores: Path) -> Path:
        path = self.folder / "masks.h5"
        path.write_bytes(scores.read_bytes())
        with h5py.File(path, "r+") as file:
            for layer in file["layers"].values():
                for name in set(layer) - {"kept"}:
                    del layer[name]
        return path

    def of_any_dump(self, scores: Path) -> Path:
        """The same without the hash of the dump, so that it fits damaged ones too."""
        path = self.folder / "free.h5"
        path.write_bytes(scores.read_bytes())
        with h5py.File(path, "r+") as file:
            del file.attrs["dump_sha256"]
        return path

    def choose(self, kind: str, rng: random.Random) -> Path:
        files = {"dump": self.dumps, "report": self.reports, "candidate": self.candidates}
        return rng.choice(files[kind]) if kind in files else getattr(self, kind)
