"""Tasks: a prompt, what a good answer is, and how an answer is scored."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._errors import FileError, UsageError
from .._files import reason
from .metrics import METRICS

#: LongBench's English and code sets by the metric that its paper gives them.
LONGBENCH = {
    "narrativeqa": "qa_f1",
    "qasper": "qa_f1",
    "multifieldqa_en": "qa_f1",
    "hotpotqa": "qa_f1",
    "2wikimqa": "qa_f1",
    "musique": "qa_f1",
    "gov_report": "rouge_l",
    "qmsum": "rouge_l",
    "multi_news": "rouge_l",
    "trec": "classification",
    "triviaqa": "qa_f1",
    "samsum": "rouge_l",
    "passage_count": "count",
    "passage_retrieval_en": "retrieval",
    "lcc": "code_sim",
    "repobench-p": "code_sim",
}
#: How RULER scores an answer and how long one is, by what stands before it; needles, which are all others: every one, 128 tokens.
RULER = {
    "they are:": ("contains_all", 30),  # variable tracking
    "in the list are:": ("contains_all", 120),  # common words
    "frequently appeared words are:": ("contains_all", 50),
    "Answer:": ("contains", 32),  # questions: any of the answers
}
#: Sets whose prompts are few-shot or code, which LongBench puts into no chat template.
PLAIN = ("trec", "triviaqa", "samsum", "lcc", "repobench-p")


@dataclass(frozen=True)
class Task:
    """One prompt and its score.

    Attributes
    ----------
    id, task : str
        The sample's name, unique, and the name of the set that it belongs to.
    prompt : str
        The text whose cache is evicted.
    question : str
        Text behind the prompt that is read after the eviction; empty where the prompt says it all.
    answers : list of str
        The right ones; the best match counts. Without answers there is no score.
    metric : str
        One of laprox.eval.metrics.METRICS.
    max_new_tokens : int
    chat : bool
        Put the prompt into the model's chat template.
    all_classes : list of str
        Of classification: every class that there is.
    facts : dict
        What plots need beside: a needle's depth and the context's length.
    """

    id: str
    prompt: str
    task: str = ""
    question: str = ""
    answers: list[str] = field(default_factory=list)
    metric: str = "qa_f1"
    max_new_tokens: int = 32
    chat: bool = False
    all_classes: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UsageError where a value is of another type, or its score could be no other than 0 or 1."""
        check_types(self)
        check_answers(self)

    def score(self, text: str) -> float:
        """0 to 1, NaN where the task has no answers."""
        if not self.answers:
            return float("nan")
        return METRICS[self.metric](text, self)

    @property
    def sha256(self) -> str:
        """Of everything that decides its figures: all but its id."""
        content = {name: value for name, value in asdict(self).items() if name != "id"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_ids(tasks: Iterable[Task], places: Sequence[str] = ()) -> None:
    """Raises UsageError where an id occurs twice: results are kept by it. places: where each task stands."""
    seen: dict[str, int] = {}
    for number, task in enumerate(tasks):
        if task.id in seen:
            where = f" ({places[seen[task.id]]} and {places[number]})" if places else ""
            raise UsageError(f"the prompt id {task.id!r} occurs twice{where}; results are kept by it, so give each prompt its own")
        seen[task.id] = number


def check_types(task: Task) -> None:
    """Raises UsageError where a value is none that a report can hold."""
    kinds = {"answers": list, "all_classes": list, "facts": dict, "max_new_tokens": int, "chat": bool}
    for key, value in vars(task).items():
        kind = kinds.get(key, str)
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if wrong or (kind is list and not all(isinstance(item, str) for item in value)):
            raise UsageError(f"{key}: expected {kind.__name__}{' of str' if kind is list else ''}, found {value!r:.60}")
        for text in value if kind is list else [value] if kind is str else []:
            if not _storable(text, key in ("id", "task")):
                raise UsageError(f"{key}: expected text that a report can hold, found {text!r:.60}")
    for name, value in task.facts.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or not _is_number(value):
            raise UsageError(
                f"facts: expected finite numbers by names of letters, digits, _ . and -, found {name!r:.40}: {value!r:.40}"
            )
    if not task.prompt:
        raise UsageError("prompt: expected text, found none")
    if task.max_new_tokens < 1:
        raise UsageError(f"max_new_tokens: expected 1 or more, found {task.max_new_tokens}")


def check_answers(task: Task) -> None:
    """Raises UsageError where no text can have another score than 0, or none another than 1."""
    if task.metric not in METRICS:
        raise UsageError(f"metric: expected one of {', '.join(METRICS)}, found {task.metric!r}")
    if task.metric == "classification" and not task.all_classes:
        raise UsageError("metric classification needs all_classes")
    for answer in task.answers:
        if task.metric in ("exact", "contains", "contains_all") and not answer.strip():
            raise UsageError(f"answers: expected text to look for, found {answer!r:.40}; leave answers out where there is none")
    can_score = {
        "classification": (lambda answer: answer in task.all_classes, "one of all_classes"),
        "count": (lambda answer: re.fullmatch(r"\s*\d+\s*", answer), "a number in digits alone"),
        "retrieval": (lambda answer: re.search(r"\d", answer), "a number in digits"),
    }
    if task.metric in can_score and task.answers:
        scores, expected = can_score[task.metric]
        if not any(map(scores, task.answers)):
            raise UsageError(f"answers: expected {expected}, which {task.metric} looks for, found {task.answers[0]!r:.60}")


def read_tasks(path: str | Path, longbench: str | Path | None = None) -> list[Task]:
    """Reads JSON lines: objects with Task's names, LongBench's own samples, or RULER's.

    `longbench` is the folder of LongBench's config (dataset2prompt.json and dataset2maxlen.json), which holds the prompts that its
    samples are put into. Raises FileError, naming the line, and UsageError where samples of LongBench come without `longbench`.
    """
    path = Path(path)
    tasks: list[Task] = []
    places: list[str] = []
    formats = _formats(Path(longbench)) if longbench else None
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            places.append(f"line {number}")
            tasks.append(_task(f"{path}:{number}", line, f"{path.name.split('.')[0]}-{number}", formats))
    if not tasks:
        raise FileError(f"{path}: expected at least one task, found none")
    try:
        check_ids(tasks, places)
    except UsageError as error:
        raise FileError(f"{path}: {error}") from error
    return tasks


def _formats(folder: Path) -> dict[str, tuple[str, int]]:
    """LongBench's prompt and length of the answer by data set."""
    found = []
    for name, kind, meaning in (("dataset2prompt.json", str, "texts"), ("dataset2maxlen.json", int, "lengths of answers")):
        try:
            values = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileError(
                f"{folder / name}: expected the file of LongBench's config, found none that can be read ({reason(error)})"
            ) from error
        fits = isinstance(values, dict) and all(type(value) is kind and value for value in values.values())
        if not fits or (kind is int and min(values.values(), default=1) < 1):
            raise FileError(f"{folder / name}: expected {meaning} by data set")
        found.append(values)
    prompts, lengths = found
    return {name: (prompts[name], lengths[name]) for name in prompts if name in lengths}


def read_file(path: Path) -> bytes:
    """A file's content. Raises FileError where it cannot be read."""
    if not path.is_file():
        raise FileError(f"{path}: no such file" if not path.exists() else f"{path}: expected a file, found something else")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {reason(error)}") from error


def _text(path: Path) -> str:
    import gzip
    import zlib

    data = read_file(path)
    try:
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FileError(f"{path}: expected UTF-8 JSON lines, plain or gzip, found something else ({error})") from error


def _task(where: str, line: str, name: str, formats: dict[str, tuple[str, int]] | None) -> Task:
    try:
        entry = json.loads(line, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise FileError(f"{where}: expected an object, found {type(entry).__name__}")
    if {"input", "context"} <= set(entry):
        entry = _longbench(where, entry, formats)
    elif "input" in entry:
        entry = _ruler(where, entry, name)
    entry = {"id": name, **{key: value for key, value in entry.items() if value is not None}}
    return _checked(where, entry)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that stands twice json keeps the last without a word."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return entry


def _checked(where: str, entry: dict[str, Any]) -> Task:
    for key in entry:
        if key not in Task.__dataclass_fields__:
            raise FileError(f"{where}: unknown key {key!r}; known are {', '.join(Task.__dataclass_fields__)}")
    try:
        return Task(**{"prompt": "", **entry})
    except UsageError as error:
        raise FileError(f"{where}: {error}") from error


def _is_number(value: Any) -> bool:
    """Whether a report can hold it: JSON spells NaN, infinities and integers of any length."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _storable(text: str, in_report: bool) -> bool:
    """Whether UTF-8 takes it: no half of a surrogate pair, which JSON can spell. Nor does HDF5 take NUL."""
    return not (in_report and "\0" in text) and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _longbench(where: str, entry: dict[str, Any], formats: dict[str, tuple[str, int]] | None) -> dict[str, Any]:
    """A line of LongBench's data (Bai et al. 2024, arXiv 2308.14508) in its published prompt, with its length and metric."""
    for key in ("answers", "dataset"):
        if key not in entry:
            raise FileError(f"{where}: {key}: expected it in a sample of LongBench, which has input and context, found none")
    name = str(entry["dataset"])
    plain = name.removesuffix("_e")
    if plain not in LONGBENCH:
        raise FileError(f"{where}: dataset: expected one of {', '.join(LONGBENCH)}, found {name!r}")
    if formats is None or plain not in formats:
        raise UsageError(
            f"{where}: a sample of LongBench, whose prompts stand in its repository: give its config folder with --longbench"
        )
    for key in ("context", "input"):
        if not isinstance(entry[key], str):
            raise FileError(f"{where}: {key}: expected str, found {entry[key]!r:.60}")
    prompt, length = formats[plain]
    try:
        text = prompt.format_map(entry)  # as LongBench does it: at once, so that nothing in the text is taken for a name
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise FileError(
            f"{where}: the prompt of {plain} in LongBench's config does not fit the sample ({reason(error)})"
        ) from error
    return {
        "id": f"{name}-{entry.get('_id', where.rsplit(':', 1)[-1])}",
        "task": name,
        "prompt": text,
        "answers": entry["answers"],
        "metric": LONGBENCH[plain],
        "max_new_tokens": length,
        "chat": plain not in PLAIN,
        "all_classes": entry.get("all_classes") or [],
    }


def _ruler(where: str, entry: dict[str, Any], name: str) -> dict[str, Any]:
    """A line of RULER's generated data (Hsieh et al. 2024, arXiv 2404.06654): its text and the beginning of the answer behind it.

    Its lines do not say which task they are of; what the answer begins with does.
    """
    if not isinstance(entry.get("outputs"), list) or not entry["outputs"]:
        found = repr(entry["outputs"])[:60] if "outputs" in entry else "none"
        raise FileError(f"{where}: outputs: expected list of answers in a line of RULER, which has input, found {found}")
    prefix = entry.get("answer_prefix") or ""
    if not isinstance(entry["input"], str) or not isinstance(prefix, str):
        raise FileError(f"{where}: input and answer_prefix: expected str, found {entry['input']!r:.40} and {prefix!r:.40}")
    text = entry["input"] + prefix
    metric, length = next((how for end, how in RULER.items() if text.rstrip().endswith(end)), ("contains_all", 128))
    return {
        "id": f"{name}" if "index" not in entry else f"{name.rsplit('-', 1)[0]}-{entry['index']}",
        "task": "ruler",
        "prompt": text,
        "answers": [str(answer) for answer in entry["outputs"]],
        "metric": metric,
        "max_new_tokens": entry.get("tokens_to_generate", length),
        "chat": False,
    }
