"""The closed loop: evict, let the model go on, and measure what it says.

::

    import laprox.eval

    model = laprox.eval.load("Qwen/Qwen2.5-0.5B-Instruct")
    tasks = laprox.eval.read_tasks("tasks.jsonl")
    report = laprox.eval.evaluate(model, tasks, ["snapkv", "laprox-r"], ["5%", "10%"])

It needs PyTorch and transformers: pip install 'laprox[eval]'. The command line is laprox-eval; docs/eval.md defines every figure.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evaluation import evaluate
    from .model import Model, load
    from .needle import needle_tasks
    from .report import open_evaluation, open_evaluations, save_evaluation
    from .settings import Settings
    from .tasks import Task, read_tasks

_HOMES = {
    "Model": "model",
    "Settings": "settings",
    "Task": "tasks",
    "evaluate": "evaluation",
    "load": "model",
    "needle_tasks": "needle",
    "open_evaluation": "report",
    "open_evaluations": "report",
    "read_tasks": "tasks",
    "save_evaluation": "report",
}
__all__ = [
    "Model",
    "Settings",
    "Task",
    "evaluate",
    "load",
    "needle_tasks",
    "open_evaluation",
    "open_evaluations",
    "read_tasks",
    "save_evaluation",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'laprox.eval' has no attribute '{name}'")
    from importlib import import_module

    found = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found
    return found
