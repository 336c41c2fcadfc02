"""A long evaluation: progress, a report that is saved after each prompt, and prompts that fail."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from laprox_dump.errors import DumpError, foreign
from laprox_dump.interrupts import as_keyboard_interrupt, deferred

from .._errors import Error, FileError, UsageError
from .compare import table
from .evaluation import Result, evaluate_prompt
from .model import Model
from .report import Report, save_evaluation
from .settings import Settings
from .tasks import Task, check_ids

MOST_REFUSED = 3  #: prompts, one after the other from the first on: then it is the options or the model, not a short prompt


class Run:
    """One report in the making."""

    def __init__(
        self,
        model: Model,
        tasks: list[Task],
        policies: list,
        budgets: list[str],
        settings: Settings,
        output: Path,
        quiet: bool = False,
    ):
        check_ids(tasks)
        self._model, self._tasks, self._settings, self._output, self._quiet = model, tasks, settings, output, quiet
        self._policies, self._budgets = policies, budgets
        self._report = Report(model, policies, budgets, settings)

    def resume(self) -> None:
        """Takes over the report that is there. Raises UsageError where it was made otherwise."""
        self._report.resume(self._output, self._tasks)

    def go(self) -> int:
        """Evaluates what is left; returns the exit code. Every finished prompt is in the file when the next one begins.

        Raises FileError where the report cannot be saved: nothing that follows could be kept. SIGTERM and SIGHUP end it as Ctrl-C
        does, by KeyboardInterrupt.
        """
        with as_keyboard_interrupt():
            return self._go()

    def _go(self) -> int:
        from tqdm import tqdm

        left = [task for task in self._tasks if task.id not in self._report.done]
        failed: list[str] = []
        refused: list[UsageError] = []  # before any prompt went well
        hidden = self._quiet or not sys.stderr.isatty()
        with tqdm(left, unit="prompt", disable=hidden, smoothing=0.1) as bar:
            for task in bar:
                bar.set_postfix_str(task.id, refresh=True)
                begun = time.monotonic()
                try:
                    result = self._evaluated(task)
                except (DumpError, Error) as error:
                    if isinstance(error, UsageError) and not self._report.done:
                        refused.append(error)
                        if len(refused) == MOST_REFUSED:
                            raise
                    failed.append(task.id)
                    print(f"laprox-eval: {task.id}: {error}", file=sys.stderr)
                    continue
                self._report.add(task, result)
                self._save()
                if hidden and not self._quiet:
                    print(f"{task.id}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        if not self._report.done:
            if refused:
                raise refused[0]
            print("laprox-eval: no prompt could be evaluated", file=sys.stderr)
            return 3
        if not self._quiet:
            print(table(self._report.dataset()))
        if failed:
            print(f"laprox-eval: {len(failed)} of {len(self._tasks)} prompts failed: {', '.join(failed)}", file=sys.stderr)
        return 1 if failed else 0

    def _evaluated(self, task: Task) -> Result:
        try:
            return evaluate_prompt(self._model, task, self._policies, self._budgets, self._settings)
        except (Error, DumpError):
            raise
        except Exception:
            with foreign(f"{self._model.name}: running it fails inside the model's own code", mixed=True):
                raise

    def _save(self) -> None:
        try:
            with deferred():
                save_evaluation(self._report.dataset(), self._output)
        except FileError as error:
            kept = f"{len(self._report.done) - 1} prompts are in it, and --resume goes on once that is mended"
            raise FileError(f"{error}; {kept if self._output.exists() else 'no prompt is saved'}") from error
