"""Damage to a text file, word by word and line by line; every random number comes from `rng`."""

import random
import re

WORDS = (
    *(
        "",
        "=",
        "[",
        "]",
        "[sweep]",
        "[report]",
        "[[x]]",
        '"',
        "'",
        "#",
        "@",
        "@damaged.txt",
        "*.h5",
        "[a-",
        "~",
        "../",
        "/dev/zero",
        "\0",
    ),
    *(
        "true",
        "nan",
        "-1",
        "0",
        "1e400",
        "9" * 400,
        "50%",
        "101%",
        "recent",
        "recent,recent",
        "all",
        "policy",
        "threads",
        "output",
        "ä",
    ),
    *("force", "window", "queries", "config", "dumps", "format", "json", "\r\n", "\u2028", "x" * 5000, "{", "}"),
)


def damage_text(content: str, rng: random.Random) -> tuple[str, str]:
    """The text after one change, and the change's name."""
    how = rng.choice(["word", "word", "word", "added line", "line twice", "line gone", "lines exchanged"])
    lines = content.split("\n")
    at = rng.randrange(len(lines))
    if how == "word":
        parts = re.split(r"(\W+)", content)
        parts[rng.randrange(len(parts))] = rng.choice(WORDS)
        return "".join(parts), how
    if how == "added line":
        lines.insert(at, f"{rng.choice(WORDS)} = {rng.choice(WORDS)}" if rng.random() < 0.7 else rng.choice(WORDS))
    elif how == "line twice":
        lines.insert(at, lines[at])
    elif how == "line gone":
        del lines[at]
    else:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    return "\n".join(lines), how
