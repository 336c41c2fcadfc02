"""Needle in a haystack: sentences hidden in a text at chosen depths, and a question about one of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .._errors import UsageError
from .tasks import Task

NEEDLE = "The secret number of {city} is {number}."
QUESTION = "What is the secret number of {city}? Answer with the number alone."
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
    haystack : text that is repeated or cut as each length asks
    lengths : tokens of the prompt, about: those of the haystack, which needles and question come on top of
    depths : 0 (begin) to 1 (end): where the sentence that is asked for stands
    count_tokens : how many tokens the model makes of a text
    needles : how many numbers are asked for; the others stand at random depths
    distractors : sentences of the same form that nobody asks for, at random depths
    apart : the question is read after the eviction, so that no policy sees it

    Raises UsageError where the haystack is empty, a number is out of its range, or a length is below what needles, question and one
    sentence of the haystack take.
    """
    sentences = check_grid(haystack, depths, needles, distractors)
    _check_lengths(lengths, sentences[0], needles, distractors, apart, count_tokens)
    tasks = []
    for length in lengths:
        whole = _of_length(sentences, length, count_tokens)
        for depth in depths:
            for sample in range(samples):
                draw = random.Random(f"{seed}/{length}/{depth}/{sample}")
                tasks.append(_task(whole, length, depth, sample, needles, distractors, chat, apart, draw))
    return tasks


def check_grid(haystack: str, depths: Sequence[float], needles: int, distractors: int) -> list[str]:
    """The haystack's sentences. Raises UsageError where it has none, or a number is out of its range."""
    sentences = [part.strip() + "." for part in haystack.replace("\n", " ").split(".") if part.strip()]
    if not sentences:
        raise UsageError("the haystack: expected a text with sentences, found none")
    if needles < 1 or distractors < 0 or needles + distractors > len(CITIES):
        raise UsageError(f"needles and distractors: expected 1 to {len(CITIES)} in all, found {needles} and {distractors}")
    for depth in depths:
        if not 0 <= depth <= 1:
            raise UsageError(f"depths: expected 0 to 1, found {depth}")
    return sentences


def _check_lengths(
    lengths: Sequence[int], sentence: str, needles: int, distractors: int, apart: bool, count_tokens: Callable[[str], int]
) -> None:
    hidden = [NEEDLE.format(city=city, number=9_999_999) for city in CITIES[: needles + distractors]]
    asked = [] if apart else [QUESTION.format(city=city) for city in CITIES[:needles]]
    least = count_tokens(" ".join([sentence, *hidden, *asked]))
    if lengths and min(lengths) < least:
        raise UsageError(
            f"lengths: expected {least} or more tokens, which the needles, the question and one sentence of the haystack take, "
            f"found {min(lengths)}"
        )


def _of_length(sentences: list[str], length: int, count_tokens: Callable[[str], int]) -> list[str]:
    """So many sentences that they make at most `length` tokens."""
    sizes = [max(1, count_tokens(" " + sentence)) for sentence in sentences]
    chosen: list[str] = []
    total = 0
    while True:
        for sentence, size in zip(sentences, sizes, strict=True):
            if total + size > length and chosen:
                return chosen
            chosen.append(sentence)
            total += size


def _task(whole, length, depth, sample, needles, distractors, chat, apart, draw: random.Random) -> Task:
    cities = draw.sample(CITIES, needles + distractors)
    numbers = [str(draw.randrange(1_000_000, 10_000_000)) for _ in cities]
    places = [depth] + [draw.random() for _ in cities[1:]]
    sentences = list(whole)
    hidden = sorted(zip(places, cities, numbers, strict=True), key=lambda item: item[0])
    for place, city, number in reversed(hidden):  # from the end, so that the places of the others stay
        sentences.insert(round(place * len(whole)), NEEDLE.format(city=city, number=number))
    asked = " ".join(QUESTION.format(city=city) for city in cities[:needles])
    text, question = " ".join(sentences), f"\n\n{asked}"
    return Task(
        id=f"needle-{length}-{depth:g}-{sample}",
        task="needle",
        prompt=text if apart else text + question,
        question=question if apart else "",
        answers=numbers[:needles],
        metric="contains_all",
        max_new_tokens=12 * needles,
        chat=chat,
        facts={"depth": depth, "length": length},
    )
