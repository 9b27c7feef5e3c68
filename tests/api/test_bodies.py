"""Bodies of requests: wrong, hostile, too large; what is said about each, and that nothing of it stays."""

from __future__ import annotations

import base64
import json
import time
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.api.bodies import Body
from serve_app.api.brackets import nested
from serve_app.api.requests import _check_names
from serve_app.errors import InvalidRequestError
from serve_app.schemas.video import VideoCreate
from tests.api.conftest import PORTRAIT, PROMPT, VOICE, Server, portrait, voice
from tests.api.test_videos import AS_JSON, AUDIO_URI
from tests.media.conftest import raw_png

pytestmark = pytest.mark.usefixtures("spooled")

BOUNDARY = "x-boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


WHOLE_FORM = (
    part("prompt", PROMPT.encode()),
    part("input_reference", PORTRAIT, "p.png"),
    part("audio", VOICE, "v.wav"),
)


def send(server: Server, content: bytes, headers: dict[str, str] | None = None) -> Any:
    return server.client.post("/v1/videos", content=content, headers=FORM if headers is None else headers)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("promt", "x", "did you mean prompt?"),
        ("smile", "x", "is not a field of a video; leave it out; fields are model, prompt,"),
        ("webhook_url", "http://x", "not supported in this version"),
        ("sample_guide_scale", "5", "only 0 is allowed"),
        ("preset", "sozial", "did you mean social?"),
        ("prompt", "", "prompt ''"),
        ("prompt", " \t ", "is blank"),
        ("prompt", "x" * 5000, "at most 4000"),
        ("size", "704", "is not WIDTH*HEIGHT"),
        ("size", "9999x9999", "allowed are"),
        ("fit", "cover", "'area' or 'exact'"),
        ("seconds", "0", "greater than 0"),
        ("seconds", "nan", "finite"),
        ("seconds", "-1", "greater than 0"),
        ("num_clip", "0", "greater than or equal to 1"),
        ("num_clip", "1.5", "valid integer"),
        ("infer_frames", "13", "multiple of 12"),
        ("sample_steps", "99", "less than or equal to 10"),
        ("seed", "-1", "greater than or equal to 0"),
        ("enable_online_decode", "perhaps", "boolean"),
        ("deadline_s", "0", "seven days"),
        ("deadline_s", "1e9", "seven days"),
        ("deadline_s", "nan", "seven days"),
        ("priority", "urgent", "'interactive', 'standard' or 'bulk'"),
        ("user", "u" * 513, "at most 512"),
        ("accept_alternatives", "maybe", "boolean"),
        ("metadata", "x", "dictionary"),
    ],
)
def test_a_wrong_field_is_named_with_its_rule(server: Server, field: str, value: str, said: str) -> None:
    error = server.error(server.post(**{field: value}), 400, "invalid_request")
    assert error["param"] == field
    assert said in error["message"], error["message"]
    assert server.stored_files() == []


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {"a" * 65: "x"}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": {"b": "c"}}}, "metadata.a"),
        ({"metadata": ["a"]}, "metadata"),
        ({"num_clip": True}, "num_clip"),
        ({"deadline_s": True}, "deadline_s"),
        ({"deadline_s": 10**400}, "deadline_s"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"\ud800": 1}, "\ud800"),
        ({"x" * 10_000: 1}, "x" * 100),
        ({"audio": AUDIO_URI}, "audio"),
        ({"image_reference": "file_x"}, "image_reference"),
        ({"image_reference": {}}, "image_reference"),
        ({"image_reference": {"image_url": AUDIO_URI, "file_id": "file_x"}}, "image_reference"),
        ({"image_reference": {"url": AUDIO_URI}}, "image_reference.url"),
        ({"input_reference": AS_JSON["image_reference"]}, "input_reference"),
        ({"image_reference": None}, "input_reference"),
        ({"audio_reference": None}, "audio"),
    ],
)
def test_wrong_json_is_refused_field_by_field(server: Server, changes: dict[str, Any], param: str) -> None:
    answer = send(server, json.dumps({**AS_JSON, **changes}).encode(), {"Content-Type": "application/json"})
    error = server.error(answer, 400, "invalid_request")
    assert error["param"].startswith(param)
    assert len(error["message"]) < 1500
    assert server.stored_files() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"nul",
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b'{"seed": ' + b"9" * 10_000 + b"}",
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"prompt": "a", "prompt": "b"}',
        b'{"metadata": {"a": "1", "a": "2"}}',
        b'{"metadata": [' + b"{}," * 1_000_000 + b"{}]}",
        b'{"metadata": {' + b'"a": 1, ' * 1_000_000 + b"}}",
        b"[" + b"0," * 1_000_000 + b"0]",
    ],
)
def test_what_is_not_one_json_object_is_refused(server: Server, content: bytes) -> None:
    began = time.process_time()
    error = server.error(send(server, content, {"Content-Type": "application/json"}), 400, "invalid_request")
    assert len(error["message"]) < 500
    assert time.process_time() - began < 0.5  # everybody else waits meanwhile


def test_text_full_of_commas_and_brackets_is_no_attack(server: Server) -> None:
    metadata = {f"{n:{'[{'[n % 2]}>64}": ",[{," * 128 for n in range(16)}
    answer = server.client.post("/v1/videos", json={**AS_JSON, "prompt": "a," * 2000, "metadata": metadata})
    assert answer.json()["metadata"] == metadata


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x; charset=punycode"]
)
def test_bodies_of_other_kinds_are_refused(server: Server, kind: str) -> None:
    error = server.error(send(server, b"prompt=x", {"Content-Type": kind}), 415, "unsupported_media")
    assert error["param"] == "Content-Type"


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", FORM),
        (b"no form", FORM),
        (form(*WHOLE_FORM)[:-200], FORM),
        (form(*WHOLE_FORM, part("deadline_s", b"60"))[: -len(BOUNDARY) - 8], FORM),
        (b"".join(WHOLE_FORM), FORM),
        (form(*WHOLE_FORM, part("user", b"\xff\xfe")), FORM),
        (b"x", {"Content-Type": "multipart/form-data"}),
        (b"x", {"Content-Type": f"multipart/form-data; boundary={'b' * 1000}"}),
        (form(b"--" + BOUNDARY.encode() + b"\r\nContent-Disposition: form-data\r\n\r\nx\r\n"), FORM),
        (form(*(part(f"f{n}", b"x") for n in range(100))), FORM),
        (form(*(part(f"f{n}", b"x", "f") for n in range(10))), FORM),
        (form(*WHOLE_FORM, part("prompt", b"again")), FORM),
        (form(*WHOLE_FORM, part("audio", VOICE, "again.wav")), FORM),
        (form(*WHOLE_FORM, part("audio", b"text")), FORM),
        (form(*WHOLE_FORM, part("metadata[a]", b"1"), part("metadata", b"2")), FORM),
        (form(*WHOLE_FORM, part("metadata", b"1"), part("metadata[a]", b"2")), FORM),
        (form(*WHOLE_FORM, part("metadata[a", b"1")), FORM),
        (form(*WHOLE_FORM, part("metadata]a[", b"1")), FORM),
        (form(*WHOLE_FORM, part("metadata[a]b", b"1")), FORM),
        (form(*WHOLE_FORM, part("metadata[]", b"1")), FORM),
        (form(*WHOLE_FORM, part("[a]", b"1")), FORM),
        (form(*WHOLE_FORM, part("", b"1")), FORM),
        (form(*WHOLE_FORM, part("metadata[a]" * 1000, b"1")), FORM),
        (form(*WHOLE_FORM, part("metadata[a][b][c][d][e]", b"1")), FORM),
        (form(*WHOLE_FORM, part("image_reference[file_id]", b"file_x")), FORM),
        (form(*WHOLE_FORM, part("voice", VOICE, "v.wav")), FORM),
        (form(*WHOLE_FORM, part("prompt", PROMPT.encode(), "prompt.txt")), FORM),
    ],
)
def test_a_form_that_is_wrong_is_refused_and_leaves_nothing(
    server: Server, content: bytes, headers: dict[str, str]
) -> None:
    server.error(send(server, content, headers), 400, "invalid_request")
    assert server.stored_files() == []


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "https://example.com/me.png",
        "s3://bucket/me.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "",
        "data:image/png,raw",
        "data:image/png;base64",
        "data:image/png;base64,a",
        "data:image/png;base64,====",
        "data:image/png;base64,iVBO\nRw0K",
        "data:image/png;base64,ümläut",
    ],
)
def test_urls_are_not_fetched_and_bad_base64_is_refused(server: Server, url: str) -> None:
    answer = server.client.post("/v1/videos", json={**AS_JSON, "image_reference": {"image_url": url}})
    assert server.error(answer, 400, "invalid_request")["param"] == "image_reference.image_url"


@pytest.mark.parametrize(
    "file_id", ["file_" + "0" * 32, "../jobs.sqlite", "file_../../x", "", "video_x", "x" * 10_000, "file_\x00"]
)
def test_a_file_that_is_not_there_is_told_whatever_its_id(server: Server, file_id: str) -> None:
    answer = server.client.post("/v1/videos", json={**AS_JSON, "image_reference": {"file_id": file_id}})
    assert server.error(answer, 404, "file_not_found")["param"] == "image_reference.file_id"


def test_an_upload_of_the_other_kind_is_refused(server: Server) -> None:
    sound = server.client.post("/v1/files", files={"file": VOICE}).json()["id"]
    answer = server.client.post("/v1/videos", json={**AS_JSON, "image_reference": {"file_id": sound}})
    assert "is of kind audio" in server.error(answer, 400, "invalid_request")["message"]


BOMB = raw_png(30_000, 30_000, bits=8, color_type=2, rows=zlib.compress(b"\0" * 1000))


@pytest.mark.parametrize(
    ("image", "audio", "param"),
    [
        (VOICE, VOICE, "input_reference"),
        (PORTRAIT, PORTRAIT, "audio"),
        (b"", VOICE, "input_reference"),
        (PORTRAIT, b"", "audio"),
        (PORTRAIT[:1000], VOICE, "input_reference"),
        (PORTRAIT, VOICE[:500], "audio"),
        (PORTRAIT, voice(0.05), "audio"),
        (portrait(16), VOICE, "input_reference"),
        (BOMB, VOICE, "input_reference"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", VOICE, "input_reference"),
        (PORTRAIT, b"#EXTM3U\nhttp://169.254.169.254/\n", "audio"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused_and_leave_nothing(
    server: Server, image: bytes, audio: bytes, param: str
) -> None:
    files = {"input_reference": ("me.png", image, "image/png"), "audio": ("v.wav", audio, "audio/wav")}
    error = server.error(server.post(files=files), 415, "unsupported_media")
    assert error["param"] == param
    assert error["message"].startswith(param)
    assert str(server.folder) not in error["message"]
    assert server.stored_files() == []


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..\\x", "a%0D%0AX: y", "ü" * 300, ".", "NUL"])
def test_names_of_files_are_never_paths(server: Server, name: str) -> None:
    files = (part("input_reference", PORTRAIT, name), part("audio", VOICE, name))
    answer = send(server, form(part("prompt", PROMPT.encode()), *files))
    assert answer.status_code == 200, answer.text
    assert all(path.parent.parent == server.folder for path in server.folder.glob("inline/*"))
    assert len(server.stored_files()) == 4


def test_what_a_file_is_does_not_depend_on_its_name_or_its_said_type(server: Server) -> None:
    files = {
        "input_reference": ("v.wav", portrait(kind="JPEG"), "audio/wav"),
        "audio": ("p.png", VOICE, "text/html"),
    }
    assert server.post(files=files).status_code == 200
    wrong_type = "data:text/html;base64," + base64.b64encode(PORTRAIT).decode()
    answer = server.client.post("/v1/videos", json={**AS_JSON, "image_reference": {"image_url": wrong_type}})
    assert answer.status_code == 200


NAMES = st.text(st.sampled_from("ab[]"), max_size=12)
KEYS = st.sampled_from(["a", "b", "ü.c", "x y"])
INNER: Any = st.dictionaries(KEYS, KEYS, min_size=1, max_size=2)
FIELDS: Any = st.dictionaries(KEYS, KEYS | st.dictionaries(KEYS, KEYS | INNER, min_size=1, max_size=2), max_size=3)


def flat(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in fields.items():
        name = f"{prefix}[{key}]" if prefix else key
        pairs += flat(value, name) if isinstance(value, dict) else [(name, value)]
    return pairs


@given(fields=FIELDS)
@settings(max_examples=50, deadline=None)
def test_brackets_written_out_are_read_back(fields: dict[str, Any]) -> None:
    pairs = flat(fields)
    assert nested(pairs) == nested(reversed(pairs)) == fields


@given(pairs=st.lists(st.tuples(NAMES, st.just("x")), max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_names_make_an_object_that_holds_each_or_a_clear_error(pairs: list[tuple[str, str]]) -> None:
    try:
        fields = nested(pairs)
    except InvalidRequestError as error:
        assert len(str(error)) < 300  # noqa: PT017
    else:
        assert sorted(flat(fields)) == sorted(pairs)


def test_every_documented_field_is_understood(server: Server) -> None:
    _check_names(Body(dict.fromkeys(VideoCreate.model_fields, "x")))
    schema = server.client.get("/openapi.json").json()
    content = schema["components"]["requestBodies"]["VideoCreate"]["content"]
    as_form = content["multipart/form-data"]["schema"]["properties"]
    as_json = schema["components"]["schemas"]["VideoCreate"]["properties"]
    assert set(as_json) == set(VideoCreate.model_fields)
    assert set(as_form) == {*as_json, "audio"}
