"""What an evaluation measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .. import _core
from .._arguments import whole
from .._errors import UsageError


@dataclass(frozen=True)
class Settings:
    """What is measured.

    tokens : length of the full cache's own continuation, on which KL and agreement are measured
    generate : also let every cell go on by itself, and score its answer
    max_new_tokens : at most that many tokens of an answer; 0: as many as the task says
    physical : remove evicted entries instead of hiding them, which is slower and gives the same
    schedule : "once": caches are cut after the prompt; "every:N" or "step": also after every N tokens behind it, or each
    backend, threads : of laprox, for scores and errors
    """

    tokens: int = 32
    generate: bool = True
    max_new_tokens: int = 0
    physical: bool = False
    schedule: str = "once"
    backend: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        whole(self.tokens, "tokens", 2)
        whole(self.max_new_tokens, "max_new_tokens", 0)
        for name in ("generate", "physical"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}: expected True or False, found {getattr(self, name)!r:.40}")
        if self.interval and self.physical:
            raise UsageError("physical: removing entries is a proof for caches that are cut once; leave it out under a schedule")

    @property
    def interval(self) -> int:
        """Tokens between two cuts; 0: caches are cut once. Raises UsageError where the schedule is none."""
        return _core.schedule_interval(self.schedule)


def described(settings: Settings) -> dict[str, object]:
    """The settings that decide the figures, for provenance and for resuming. Without a schedule there is no word of one."""
    left_out = {"backend", "threads", "physical"} | (set() if settings.interval else {"schedule"})
    return {name: value for name, value in asdict(settings).items() if name not in left_out}
