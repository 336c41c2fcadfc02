"""Scores of an answer's text, 0 to 1: LongBench's published definitions (Bai et al. 2024, arXiv 2308.14508), and two plain ones.

LongBench scores the first line only in TREC, TriviaQA and SAMSum; here the metric is told by the task and the text is whole, except
for classification and code, as there.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tasks import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")  # few-shot sets, where a model goes on with more examples


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and repeated white space, as SQuAD's scorer does it."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def qa_f1(text: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the words that both have."""
    found, expected = normalised(text).split(), normalised(answer).split()
    same = sum((Counter(found) & Counter(expected)).values())
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def rouge_l(text: str, answer: str) -> float:
    """F measure of the longest common subsequence, by the package rouge, as LongBench takes it."""
    from rouge import Rouge

    try:
        return float(Rouge().get_scores([text], [answer], avg=True)["rouge-l"]["f"])
    except (ValueError, RecursionError):  # an empty hypothesis, or one of full stops alone
        return 0.0


def code_similarity(text: str, answer: str) -> float:
    """Similarity of the first line that is no comment, by the package thefuzz (Levenshtein ratio)."""
    from thefuzz import fuzz

    lines = [line for line in text.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//"))]
    return fuzz.ratio(lines[0] if lines else "", answer) / 100


def retrieval(text: str, answer: str) -> float:
    """Share of the numbers in the text that are the paragraph's."""
    wanted = re.findall(r"\d+", answer)
    return _share(re.findall(r"\d+", text), wanted[0] if wanted else "")


def count(text: str, answer: str) -> float:
    """Share of the numbers in the text that are the right one."""
    return _share(re.findall(r"\d+", text), answer.strip())


def exact(text: str, answer: str) -> float:
    """1 where both are the same, normalised."""
    return float(normalised(text) == normalised(answer))


def contains(text: str, answer: str) -> float:
    """1 where the answer occurs in the text, upper and lower case alike."""
    return float(answer.lower() in text.lower())


def classification(text: str, answer: str, classes: list[str]) -> float:
    """1 over the number of classes that the text names, if the right one is among them.

    Parts of the right one's name do not count, but for the one behind such a part, which LongBench's own loop passes over as it
    takes the part away.
    """
    named = [name for name in classes if name in text]
    place = 0
    while place < len(named):
        if named[place] in answer and named[place] != answer:
            named.remove(named[place])
        place += 1
    return 1 / len(named) if answer in named else 0.0


def _share(found: list[str], wanted: str) -> float:
    return found.count(wanted) / len(found) if found else 0.0


def _best(one: Callable[[str, str], float]) -> Callable[[str, Task], float]:
    """The best over the task's answers."""

    def score(text: str, task: Task) -> float:
        if task.task.removesuffix("_e") in _FIRST_LINE:
            text = text.lstrip("\n").split("\n")[0]
        return max(one(text, answer) for answer in task.answers)

    return score


def _classified(text: str, task: Task) -> float:
    return _best(lambda line, answer: classification(line, answer, task.all_classes))(text, task)


def _contains_all(text: str, task: Task) -> float:
    """Share of the answers that occur: RULER's score."""
    return sum(contains(text, answer) for answer in task.answers) / len(task.answers)


METRICS: dict[str, Callable[[str, Task], float]] = {
    "qa_f1": _best(qa_f1),
    "rouge_l": _best(rouge_l),
    "code_sim": _best(code_similarity),
    "retrieval": _best(retrieval),
    "count": _best(count),
    "exact": _best(exact),
    "contains": _best(contains),
    "contains_all": _contains_all,
    "classification": _classified,
}
