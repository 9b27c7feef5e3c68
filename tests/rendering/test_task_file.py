"""Task files: as users keep them, and what is said of anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import AvatarError, InputNotFoundError, InvalidRequestError, UnsupportedMediaError
from serve_app.rendering.task_file import MAX_BYTES, locate_input, read_task_file
from serve_app.schemas.request import complete

FIELDS = {"image": "/in/me.png", "audio": "/in/voice.wav", "prompt": "A person talks.", "size": "688*368"}


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with task_queue/ and, apart from it, the working directory."""
    (tmp_path / "home" / "task_queue").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def task(folder: Path, content: bytes) -> Path:
    path = folder / "task_001.json"
    path.write_bytes(content)
    return path


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"an input")
    return path


@pytest.fixture(name="absolute")
def _absolute(tmp_path: Path) -> dict[str, object]:
    """The fields of a good task whose inputs exist."""
    return {**FIELDS, "image": str(put(tmp_path / "me.png")), "audio": str(put(tmp_path / "voice.wav"))}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_a_task_file_is_a_request(home: Path, absolute: dict[str, object], mark: bytes) -> None:
    fields = {**absolute, "prompt": "一位女士在说话", "num_clip": 50, "sample_steps": 4, "preset": "social"}
    read = read_task_file(task(home, mark + json.dumps(fields, ensure_ascii=False).encode()), overrides={})
    assert read == fields
    spec = complete(read, defaults={})
    assert (spec.prompt, str(spec.size), spec.num_clip, spec.sample_steps) == ("一位女士在说话", "688x368", 50, 4)


def test_overrides_win_and_what_they_replace_is_not_looked_for(home: Path, absolute: dict[str, object]) -> None:
    path = task(home, json.dumps({**absolute, "image": "gone.png"}).encode())
    read = read_task_file(path, overrides={"image": "mine.png", "seed": 7})
    assert (read["image"], read["audio"], read["seed"]) == ("mine.png", absolute["audio"], 7)


def test_inputs_are_found_where_users_keep_them_in_this_order(home: Path) -> None:
    folder = home / "task_queue"
    last = put(Path("inputs/images/me.png"))
    assert locate_input("me.png", param="image", task_folder=folder) == last
    middle = put(home / "inputs" / "images" / "me.png")
    assert locate_input("me.png", param="image", task_folder=folder).resolve() == middle
    first = put(folder / "me.png")
    assert locate_input("me.png", param="image", task_folder=folder) == first


def test_voices_have_a_folder_of_their_own(home: Path) -> None:
    put(home / "inputs" / "images" / "voice.wav")
    voice = put(home / "inputs" / "audios" / "voice.wav")
    assert locate_input("voice.wav", param="audio", task_folder=home / "task_queue").resolve() == voice


@pytest.mark.parametrize(
    "written", ["gone.png", "g" * 5_000, "a\0b.png", "\ud800"], ids=["gone", "long", "NUL", "half"]
)
def test_an_input_that_is_nowhere_is_told_with_the_places(home: Path, written: str) -> None:
    with pytest.raises(InputNotFoundError) as refused:
        locate_input(written, param="image", task_folder=home / "task_queue")
    assert refused.value.param == "image"
    assert f'looked for "{home}/task_queue/{written}", "{home}/task_queue/../inputs/images/' in str(refused.value)
    assert '"inputs/images/' in str(refused.value)


def test_an_absolute_path_is_looked_for_only_there() -> None:
    with pytest.raises(InputNotFoundError, match=r'looked for "/no/me\.png"; put it there'):
        locate_input("/no/me.png", param="image", task_folder=Path("task_queue"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not JSON", "is not JSON in UTF-8"),
        (b'{"prompt": "half', "is not JSON in UTF-8"),
        (b'{"prompt": "caf\xe9"}', "is not JSON in UTF-8"),
        ('{"prompt": "A"}'.encode("utf-16"), "is not JSON in UTF-8"),
        (b"\xef\xbb\xbf", "is not JSON in UTF-8"),
        (b"[" * 100_000, "is not JSON in UTF-8"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "is not JSON in UTF-8"),
        (b"[]", "holds [], which is no JSON object"),
        (b'"text"', "holds 'text', which is no JSON object"),
        (b"null", "holds None, which is no JSON object"),
        (b'{"seed": 1, "seed": 2}', "has the field 'seed' 2 times"),
    ],
    ids=lambda value: repr(value[:16]) if isinstance(value, bytes) else "",
)
def test_what_is_no_task_is_refused_with_an_example(home: Path, content: bytes, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_task_file(task(home, content), overrides={})
    assert said in str(refused.value)
    assert '{"image": "me.png"' in refused.value.remedy
    assert refused.value.param == "task"


def test_an_empty_and_a_too_large_file_are_refused(home: Path) -> None:
    with pytest.raises(UnsupportedMediaError, match=r'task_001\.json" is empty'):
        read_task_file(task(home, b""), overrides={})
    with pytest.raises(UnsupportedMediaError, match=rf"has {MAX_BYTES + 1} bytes; allowed are {MAX_BYTES}"):
        read_task_file(task(home, b" " * (MAX_BYTES + 1)), overrides={})


def test_what_is_no_file_is_not_found(home: Path) -> None:
    for path in (home / "no.json", home, Path("a\0b.json")):
        with pytest.raises(InputNotFoundError, match="existing task file"):
            read_task_file(path, overrides={})


@pytest.mark.parametrize("value", ["", 7, None, ["me.png"]], ids=repr)
def test_an_image_that_is_no_name_is_left_for_the_rules_of_fields(
    home: Path, absolute: dict[str, object], value: object
) -> None:
    read = read_task_file(task(home, json.dumps({**absolute, "image": value}).encode()), overrides={})
    with pytest.raises(InvalidRequestError) as refused:
        complete(read, defaults={})
    assert refused.value.param == "image"


@given(position=st.floats(0, 1), noise=st.binary(min_size=1, max_size=8), cut=st.integers(0, 8))
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_bring_a_spec_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, position: float, noise: bytes, cut: int
) -> None:
    whole = json.dumps({**FIELDS, "image": __file__, "audio": __file__, "num_clip": 50, "preset": "social"}).encode()
    start = int(position * len(whole))
    path = task(tmp_path_factory.getbasetemp(), whole[:start] + noise + whole[start + cut :])
    try:
        assert complete({**FIELDS, **read_task_file(path, overrides={})}, defaults={}).num_clip
    except AvatarError as error:
        assert error.exit_code == 2  # noqa: PT017
        assert error.remedy  # noqa: PT017
