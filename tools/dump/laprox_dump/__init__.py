"""Write laprox dumps: the attention tensors of one prompt through one HuggingFace causal language model.

`python -m laprox_dump --help` is the command line; `laprox_dump.export.export_prompt` is the same thing as a function.
"""

__version__ = "0.1.0"
