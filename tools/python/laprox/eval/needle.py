"""Needle in a haystack: sentences hidden in a text at chosen depths, and a question about one of them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from .._arguments import whole
from .._errors import UsageError
from .tasks import Task

NEEDLE = "The secret number of {city} is {number}."
QUESTION = "What is the secret number of {city}? Answer with the number alone."
#: A sentence with the white space behind it: to a mark that white space follows, a full stop of Chinese, or an empty line.
_SENTENCE = re.compile(r".+?(?:[.!?][\"')\]”’]*(?=\s)|[。！？]|(?=\n\s*\n)|$)\s*", re.DOTALL)
LONG = 400  # characters of a sentence
_WORDS = re.compile(rf".{{1,{LONG}}}(?:\s|$)|.{{1,{LONG}}}", re.DOTALL)
SPARE = 8  # tokens of an answer beside the sentence with the number, which models like to repeat
CITIES = (
    *("Lisbon", "Oslo", "Nairobi", "Lima", "Kyoto", "Quito", "Tunis", "Hanoi", "Dublin", "Accra", "Vienna", "Havana"),
    *("Riga", "Cairo", "Perth", "Porto", "Sofia", "Minsk", "Dakar", "Delhi", "Basel", "Turin", "Ghent", "Split"),
)


def needle_tasks(
    haystack: str,
    lengths: Sequence[int],
    depths: Sequence[float],
    count_tokens: Callable[[str], int],
    *,
    needles: int = 1,
    distractors: int = 0,
    samples: int = 1,
    chat: bool = True,
    apart: bool = False,
    seed: int = 0,
) -> list[Task]:
    """A grid of tasks, `samples` for each length and depth.

    Parameters
    ----------
    haystack : text that is repeated or cut as each length asks; what is left of it stays as it is
    lengths : tokens of the prompt, about: those of the haystack, which needles and question come on top of
    depths : where the sentence that is asked for stands: behind that share of the haystack's tokens, 0 (begin) to 1 (end), between
        the two sentences that are nearest; the fact `place` says the share that it came to
    count_tokens : how many tokens the model makes of a text
    needles : how many numbers are asked for; the others stand at random depths
    distractors : sentences of the same form that nobody asks for, at random depths
    apart : the question is read after the eviction, so that no policy sees it

    Raises UsageError where the haystack is empty, a number is out of its range, or a length is below what needles, question and one
    sentence of the haystack take.
    """
    sentences = check_grid(haystack, depths, needles, distractors)
    whole(samples, "samples", 1)
    _check_lengths(lengths, sentences[0], needles, distractors, apart, count_tokens)
    tasks = []
    for length in lengths:
        text = _Text(sentences, length, count_tokens)
        for depth in map(float, depths):
            for sample in range(samples):
                draw = random.Random(f"{seed}/{length}/{depth}/{sample}")
                tasks.append(_task(text, length, depth, sample, needles, distractors, chat, apart, draw))
    return tasks


def check_grid(haystack: str, depths: Sequence[float], needles: int, distractors: int) -> list[str]:
    """The haystack's sentences. Raises UsageError where it has none, or a number is out of its range."""
    text = haystack.strip()
    if not text:
        raise UsageError("the haystack: expected a text with sentences, found none")
    if needles < 1 or distractors < 0 or needles + distractors > len(CITIES):
        raise UsageError(f"needles and distractors: expected 1 to {len(CITIES)} in all, found {needles} and {distractors}")
    if not len(depths):
        raise UsageError("depths: expected at least one, found none")
    for depth in depths:
        if not 0 <= depth <= 1:
            raise UsageError(f"depths: expected 0 to 1, found {depth}")
    return [part for sentence in _SENTENCE.findall(text + " ") for part in _short(sentence)]  # the text may be repeated


def _short(sentence: str) -> list[str]:
    """A sentence, or the lines of one that is long (a table), or so many words of one that has no lines."""
    if len(sentence) <= LONG:
        return [sentence]
    return [part for line in sentence.splitlines(keepends=True) for part in _WORDS.findall(line)]


def _check_lengths(
    lengths: Sequence[int], sentence: str, needles: int, distractors: int, apart: bool, count_tokens: Callable[[str], int]
) -> None:
    hidden = [NEEDLE.format(city=city, number=9_999_999) for city in CITIES[: needles + distractors]]
    asked = [] if apart else [QUESTION.format(city=city) for city in CITIES[:needles]]
    least = count_tokens(" ".join([sentence.rstrip(), *hidden, *asked]))
    if lengths and min(lengths) < least:
        raise UsageError(
            f"lengths: expected {least} or more tokens, which the needles, the question and one sentence of the haystack take, "
            f"found {min(lengths)}"
        )


class _Text:
    """So many sentences of the haystack that they make at most `length` tokens, and at least one."""

    def __init__(self, sentences: list[str], length: int, count_tokens: Callable[[str], int]):
        sizes = [max(1, count_tokens(sentence)) for sentence in sentences]
        self.sentences: list[str] = []
        self.before = [0]  #: tokens before each sentence, and behind the last one
        while not self.sentences or self.before[-1] + sizes[len(self.sentences) % len(sizes)] <= length:
            number = len(self.sentences) % len(sizes)
            self.sentences.append(sentences[number])
            self.before.append(self.before[-1] + sizes[number])
        self.answer_tokens = SPARE + max(count_tokens(NEEDLE.format(city=city, number=9_999_999)) for city in CITIES)

    def share(self, gap: int) -> float:
        """Of the tokens that stand before a gap between sentences."""
        return self.before[gap] / self.before[-1]

    def gap(self, depth: float) -> int:
        """The gap that is nearest to this share of the tokens."""
        return min(range(len(self.before)), key=lambda gap: abs(self.share(gap) - depth))

    def hiding(self, hidden: list[tuple[int, str]]) -> str:
        """The text with sentences in these gaps."""
        parts = list(self.sentences)
        for gap, sentence in sorted(hidden, key=lambda item: item[0], reverse=True):  # from the end: other gaps stay
            parts.insert(gap, sentence + " ")
        return "".join(parts).rstrip()


def _task(text: _Text, length, depth, sample, needles, distractors, chat, apart, draw: random.Random) -> Task:
    cities = draw.sample(CITIES, needles + distractors)
    numbers = [str(draw.randrange(1_000_000, 10_000_000)) for _ in cities]
    gaps = [text.gap(place) for place in (depth, *(draw.random() for _ in cities[1:]))]
    sentences = [NEEDLE.format(city=city, number=number) for city, number in zip(cities, numbers, strict=True)]
    asked = " ".join(QUESTION.format(city=city) for city in cities[:needles])
    hay, question = text.hiding(list(zip(gaps, sentences, strict=True))), f"\n\n{asked}"
    return Task(
        id=f"needle-{length}-{depth:g}-{sample}",
        task="needle",
        prompt=hay if apart else hay + question,
        question=question if apart else "",
        answers=numbers[:needles],
        metric="contains_all",
        max_new_tokens=text.answer_tokens * needles,
        chat=chat,
        facts={"depth": depth, "length": length, "place": text.share(gaps[0])},
    )
