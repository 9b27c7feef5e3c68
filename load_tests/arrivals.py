"""When which video is asked for: drawn from a seed before anything is sent, and kept as a trace of JSON lines."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

CLASSES = ("interactive", "standard", "bulk")
READERS = ("play", "stop", "none")
"""Who reads the live stream: a player to its end, one that stops after the first block, nobody."""


@dataclass(frozen=True)
class Arrival:
    """One request. `at_s` counts from the start of the run; `deadline_s` None: what the class gets."""

    at_s: float
    priority: str
    size: str
    num_clip: int
    deadline_s: float | None = None
    reader: str = "play"

    def __post_init__(self) -> None:
        if not 0 <= self.at_s < float("inf"):
            raise ValueError(f"time {self.at_s} is not a moment of the run: 0 or later")
        if self.priority not in CLASSES:
            raise ValueError(f"class {self.priority!r} is none of {', '.join(CLASSES)}")
        if self.reader not in READERS:
            raise ValueError(f"reader {self.reader!r} is none of {', '.join(READERS)}")
        if self.num_clip < 1:
            raise ValueError(f"num_clip {self.num_clip} is below 1")


@dataclass(frozen=True)
class Mix:
    """What is asked for: classes by weight, and each size and length as often as any other."""

    classes: Mapping[str, float] = field(default_factory=lambda: {"standard": 1.0})
    sizes: Sequence[str] = ("64x64",)
    num_clips: Sequence[int] = (1,)
    deadline_s: float | None = None
    readers: Mapping[str, float] = field(default_factory=lambda: {"play": 1.0})

    def draw(self, at_s: float, random: random.Random) -> Arrival:
        (priority,) = random.choices(list(self.classes), list(self.classes.values()))
        (reader,) = random.choices(list(self.readers), list(self.readers.values()))
        size, num_clip = random.choice(self.sizes), random.choice(self.num_clips)
        return Arrival(at_s, priority, size, num_clip, self.deadline_s, reader)


@dataclass(frozen=True)
class Pattern:
    """How arrivals lie in time: `rate` a second on the average for `duration_s`. `burst`: so many come at once."""

    shape: str = "poisson"
    rate: float = 1.0
    duration_s: float = 30.0
    burst: int = 10

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape {self.shape!r} is none of {', '.join(SHAPES)}")
        for name in ("rate", "duration_s", "burst"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)} is not above 0")


def draw_schedule(pattern: Pattern, mix: Mix, *, seed: str) -> list[Arrival]:
    """Returns the arrivals in order: the same ones for the same arguments, on every machine.

    Times and kinds are drawn apart, so that another shape asks for the same videos.
    """
    times, kinds = random.Random(f"{seed}/times"), random.Random(f"{seed}/kinds")  # noqa: S311  (a load, no secret)
    moments = takewhile(lambda at_s: at_s < pattern.duration_s, SHAPES[pattern.shape](pattern, times))
    return [mix.draw(at_s, kinds) for at_s in moments]


def _poisson(pattern: Pattern, random: random.Random) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += random.expovariate(pattern.rate)
        yield at_s


def _uniform(pattern: Pattern, _: random.Random) -> Iterator[float]:
    return (number / pattern.rate for number in count())


def _burst(pattern: Pattern, _: random.Random) -> Iterator[float]:
    return (number // pattern.burst * pattern.burst / pattern.rate for number in count())


SHAPES: Mapping[str, Callable[[Pattern, random.Random], Iterator[float]]] = {
    "poisson": _poisson,
    "uniform": _uniform,
    "burst": _burst,
}


def write_trace(path: Path, arrivals: Iterable[Arrival]) -> None:
    """Writes one JSON object per line: time, class, size, num_clip, deadline, reader."""
    with path.open("w", encoding="utf-8") as file:
        for arrival in arrivals:
            file.write(json.dumps(_row(arrival)) + "\n")


def read_trace(path: Path) -> list[Arrival]:
    """Returns the arrivals of a trace in the order of their times; raises ValueError that names the bad line."""
    arrivals = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            arrivals.append(_arrival(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: {error!r}; needed are time, class, size, num_clip") from error
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def _row(arrival: Arrival) -> dict[str, object]:
    return {
        "time": arrival.at_s,
        "class": arrival.priority,
        "size": arrival.size,
        "num_clip": arrival.num_clip,
        "deadline": arrival.deadline_s,
        "reader": arrival.reader,
    }


def _arrival(row: Mapping[str, object]) -> Arrival:
    deadline = row.get("deadline")
    return Arrival(
        at_s=float(str(row["time"])),
        priority=str(row["class"]),
        size=str(row["size"]),
        num_clip=int(str(row["num_clip"])),
        deadline_s=None if deadline is None else float(str(deadline)),
        reader=str(row.get("reader", "play")),
    )
