"""Checks rows before anything is rendered: values, inputs, whether they ever fit, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from serve_app.bulk.ahead import in_order
from serve_app.bulk.identity import body_key
from serve_app.bulk.inputs import InputFile, InputReader
from serve_app.bulk.manifests.names import archive_name
from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.row import BadRow, Document, Entry
from serve_app.bulk.table import PlannedRow
from serve_app.errors import (
    AudioTooShortError,
    AvatarError,
    InputNotFoundError,
    InvalidRequestError,
    StorageError,
    UnsupportedMediaError,
)
from serve_app.jobs.admission import DoesNotFit, Fits
from serve_app.planning.geometry import Size
from serve_app.planning.hardware import GIB
from serve_app.planning.workload import Workload
from serve_app.rendering.inputs import VideoFacts, check_prompt, describe
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec
from serve_app.schemas.request import complete
from serve_app.storage.files import AudioFacts, ImageFacts

Judge = Callable[[Workload], Fits | DoesNotFit]
"""Says whether a video fits the groups of this job, and how long it takes there."""


@dataclass(frozen=True)
class Checker:
    """`defaults` are settings for rows that say nothing of them; the others among them win over their `preset`.

    A row's own settings, its own preset among them, win over all of these. Raises InvalidRequestError for what would
    spoil every row. `name` is the checked template of names in the archive, None without one.
    """

    config: AppConfig
    judge: Judge
    inputs: InputReader
    defaults: Document
    name: str | None = None

    def __post_init__(self) -> None:
        complete({**self.defaults, "image": "any", "audio": "any", "prompt": "any"}, defaults={})

    def check(self, entry: Entry) -> PlannedRow | BadRow:
        """Returns the row as it will be rendered, or why it will not be."""
        try:
            spec = self._spec(entry)
            image = self.inputs.read(spec.image, base=entry.base, kind="image")
            audio = self.inputs.read(spec.audio, base=entry.base, kind="audio")
            return self._planned(entry, spec.model_copy(update={"image": image.uri, "audio": audio.uri}), image, audio)
        except AvatarError as error:
            return bad_row(entry, *_told(error))

    def _spec(self, entry: Entry) -> RenderSpec:
        if "preset" in self.defaults and "preset" not in entry.fields:
            spec = complete({**self.defaults, **entry.fields}, defaults=entry.defaults)
        else:
            settings = {name: value for name, value in self.defaults.items() if name != "preset"}
            spec = complete(entry.fields, defaults={**entry.defaults, **settings})
        check_prompt(spec.prompt)
        return spec

    def _planned(self, entry: Entry, spec: RenderSpec, image: InputFile, audio: InputFile) -> PlannedRow | BadRow:
        video = _described(spec, image, audio)
        verdict = self.judge(video.work)
        if isinstance(verdict, DoesNotFit):
            return bad_row(entry, Code.NEVER_FITS, _why_not(verdict), "plan")
        key = body_key(spec, image_sha256=image.sha256, audio_sha256=audio.sha256, encoding=self.config.encoding)
        origin = {
            "original": entry.original,
            "base": entry.base,
            "sha256": {"image": image.sha256, "audio": audio.sha256},
            "metadata": dict(entry.metadata),
            "archive_name": self._archive_name(entry, image, audio),
            "warnings": [warning.message for warning in video.warnings],
        }
        return PlannedRow(
            number=entry.number,
            custom_id=entry.custom_id,
            spec=spec.model_dump(mode="json"),
            origin=origin,
            body_key=key,
            predicted_s=verdict.seconds,
            num_frames=video.timeline.num_frames,
        )

    def _archive_name(self, entry: Entry, image: InputFile, audio: InputFile) -> str | None:
        if self.name is None:
            return None
        return archive_name(self.name, number=entry.number, audio=audio.uri, image=image.uri, custom_id=entry.custom_id)


def check_all(rows: Iterable[Entry | BadRow], checker: Checker, *, num_threads: int) -> Iterator[PlannedRow | BadRow]:
    """Yields what becomes of each row, in order; several are read at once, and few are held."""

    def checked(row: Entry | BadRow) -> PlannedRow | BadRow:
        return row if isinstance(row, BadRow) else checker.check(row)

    return in_order(checked, rows, num_threads=num_threads)


def bad_row(entry: Entry, code: Code, message: str, stage: str) -> BadRow:
    """Returns a row that can be understood as one that will not be rendered."""
    error = RowError(code, message, stage)
    return BadRow(entry.number, entry.original, entry.base, error, custom_id=entry.custom_id)


def _described(spec: RenderSpec, image: InputFile, audio: InputFile) -> VideoFacts:
    assert isinstance(image.facts, ImageFacts)
    assert isinstance(audio.facts, AudioFacts)
    return describe(spec, portrait=Size(image.facts.width, image.facts.height), speech=audio.facts)


def _told(error: AvatarError) -> tuple[Code, str, str]:
    """Returns code, message and stage of what is wrong with a row."""
    match error:
        case AudioTooShortError():
            return Code.AUDIO_TOO_SHORT, str(error), "inputs"
        case UnsupportedMediaError():
            return Code.INPUT_UNDECODABLE, str(error), "inputs"
        case InputNotFoundError():
            return Code.INPUT_MISSING, str(error), "inputs"
        case StorageError():
            return Code.INPUT_UNREACHABLE, str(error), "inputs"
        case InvalidRequestError(param="prompt"):
            return Code.PROMPT_INVALID, str(error), "manifest"
        case InvalidRequestError():
            return Code.ROW_INVALID, str(error), "manifest"
        case _:
            raise error


def _why_not(verdict: DoesNotFit) -> str:
    nearest = "; ".join(one.change for one in verdict.nearest) or "use larger cards, or another layout"
    return (
        f"never fits: a rank needs {verdict.needed_bytes / GIB:.2f} GiB of {verdict.available_bytes / GIB:.2f} GiB, "
        f"what no longer fits is: {verdict.part}; {nearest}"
    )
