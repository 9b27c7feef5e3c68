"""AppConfig: complete by itself, unchangeable, and strict about what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.schemas.config import AppConfig, AudioLimits, ImageLimits, VideoEncoding


def test_every_part_has_defaults() -> None:
    config = AppConfig()
    assert (config.image, config.audio, config.encoding) == (ImageLimits(), AudioLimits(), VideoEncoding())


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert AppConfig().cache_dir == tmp_path / "live-avatar-serve"


@pytest.mark.parametrize("unset", [None, ""])
def test_without_a_word_from_the_environment_it_lies_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if unset is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
    assert AppConfig().cache_dir == tmp_path / ".cache" / "live-avatar-serve"


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AppConfig().encoding.crf = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("part", "values"),
    [
        (ImageLimits, {"max_pixels": 0}),
        (ImageLimits, {"max_aspect": 0.5}),
        (AudioLimits, {"min_seconds": 0}),
        (VideoEncoding, {"crf": 52}),
        (VideoEncoding, {"threads": 0}),
        (VideoEncoding, {"bitrate": 1}),
        (AppConfig, {"unknown": 1}),
    ],
)
def test_what_makes_no_sense_is_refused(part: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        part(**values)
