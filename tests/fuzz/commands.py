"""Which command reads a damaged file of which kind."""

import random
from pathlib import Path

from sound import POLICY, SoundFiles

KINDS = ("dump", "dump", "dump", "dump", "report", "report", "candidate", "candidate", "config", "list")
POLICIES = (
    *("recent", "snapkv:window=4", "laprox+layer:window=4", "h2o", "knorm", "laprox-r:window=4,sinks=1,kernel=3", "random,oracle"),
    *("keydiff", "tova", "expected-attention", "lagkv", "snapkv+ada:window=4", "streaming", "criticalkv:window=4"),
)
FORMATS = ("table", "csv", "json")


def reading_dump(path: Path, sound: SoundFiles, output: Path, rng: random.Random) -> list:
    policy, budget = rng.choice(POLICIES), rng.choice(["50%", "24", "3KiB", "30%,60%"])
    ask = ["--policy", policy, "--budget", budget]
    return rng.choice(
        [
            ["sweep", path, *ask, "-o", output, "--force", "--save-kept", "--quiet"],
            ["sweep", path, sound.dump, *ask, "--format", rng.choice(FORMATS), "--queries", "window", "--window", "4"],
            ["sweep", path, *ask, "-o", output, "--force", "--no-check", "--softmax", "truncated", "--quiet"],
            [
                "sweep",
                path,
                *ask,
                "--show-plan",
                "--backend",
                "reference",
                "--metric",
                rng.choice(["residual_error", "mean_error"]),
            ],
            ["score", path, "--policy", policy.split(",random")[0].split(",oracle")[0], "-o", output, "--force"],
            ["inspect", path, "--format", rng.choice(["table", "json"])],
            ["inspect", path, "--no-check"],
            ["verify", path, "--backend", "cpu", "--policy", policy, "--budget", "60%"],
            ["verify", path, "--candidate", sound.free],
        ]
    )


def reading_report(path: Path, sound: SoundFiles, output: Path, rng: random.Random) -> list:
    show = ["report", path, "--format", rng.choice(FORMATS)]
    ask = ["--policy", "recent,random,oracle,knorm", "--budget", "50%,60%", "--quiet", *rng.choice([[], ["--save-kept"]])]
    return rng.choice(
        [
            show,
            [*show, "--summary", "--metric", rng.choice(["regret", "retained_mass", "cosine_mean"])],
            [*show[:2], "--compare", "recent,knorm"],
            ["merge", *rng.sample([path, sound.report_of_other], 2), "-o", output, "--force"],
            ["sweep", rng.choice([sound.dump, sound.other]), *ask, "-o", path, "--resume"],
        ]
    )


def reading_candidate(path: Path, sound: SoundFiles, output: Path, rng: random.Random) -> list:
    return rng.choice(
        [
            ["verify", sound.dump, "--candidate", path, "--format", rng.choice(["table", "json"])],
            ["verify", sound.dump, "--candidate", path, "--policy", POLICY, "--precision", "float32"],
            [
                "sweep",
                sound.dump,
                "--scores",
                f"{path}{rng.choice(['', '', '+layer', '+ada'])}",
                "--budget",
                "50%",
                "-o",
                output,
                "--force",
            ],
        ]
    )


def command(kind: str, path: Path, sound: SoundFiles, output: Path, rng: random.Random) -> list[str]:
    """The words of a command, without the program, that reads the file at `path`."""
    if kind == "dump":
        words = reading_dump(path, sound, output, rng)
    elif kind == "report":
        words = reading_report(path, sound, output, rng)
    elif kind == "candidate":
        words = reading_candidate(path, sound, output, rng)
    elif kind == "config":
        words = ["sweep", sound.dump, "--config", path, "-o", output, "--force"]
    else:
        words = ["sweep", f"@{path}", "--policy", "recent,knorm", "--budget", "50%", "-o", output, "--force"]
    return [str(word) for word in words]
