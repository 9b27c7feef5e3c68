"""Rows: what each form of writing one means, and what is said of those that mean nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.bulk.manifests.rows import Place, read_row
from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.row import BadRow, Document, Entry
from serve_app.schemas.request import complete

PLACE = Place(number=7, base="/jobs")
FLAT = {"custom_id": "row-1", "image": "me.png", "audio": "voice.wav", "prompt": "A woman talks."}
BODY = {
    "prompt": "A woman talks.",
    "image_reference": {"image_url": "me.png"},
    "audio_reference": {"audio_url": "s3://voices/voice.wav"},
}


def understood(row: Document) -> Entry:
    entry = read_row(row, PLACE)
    assert isinstance(entry, Entry), entry.error.message
    return entry


def refused(row: Document) -> BadRow:
    bad = read_row(row, PLACE)
    assert isinstance(bad, BadRow)
    return bad


def envelope(**body: object) -> dict[str, Any]:
    return {"custom_id": "row-1", "method": "POST", "url": "/v1/videos", "body": {**BODY, **body}}


def test_a_flat_row_is_a_request_with_an_id() -> None:
    row = {**FLAT, "preset": "social", "size": "688*368", "num_clip": 20, "seed": None, "metadata": {"k": "v"}}
    entry = understood(row)
    assert (entry.number, entry.custom_id, entry.base, entry.metadata) == (7, "row-1", "/jobs", {"k": "v"})
    assert entry.original == row
    assert entry.fields == {name: row[name] for name in row if name not in ("custom_id", "seed", "metadata")}
    spec = complete(entry.fields, defaults=entry.defaults)
    assert (spec.num_clip, spec.sample_steps, spec.max_seconds) == (20, 3, None)


def test_text_from_a_table_means_the_same_as_numbers_and_truths() -> None:
    texts = {
        "num_clip": "50.0",
        "infer_frames": "48",
        "sample_steps": "3",
        "seed": "7",
        "enable_online_decode": "FALSE",
        "sample_guide_scale": "0.0",
        "seconds": "2.5",
        "size": "384x256",
        "fit": "area",
    }
    entry = understood({**FLAT, **texts})
    spec = complete(entry.fields, defaults=entry.defaults)
    assert (spec.num_clip, spec.infer_frames, spec.sample_steps, spec.seed) == (50, 48, 3, 7)
    assert (spec.enable_online_decode, spec.max_seconds, str(spec.size)) == (False, 2.5, "384x256")


def test_metadata_may_be_an_object_its_text_or_fields_of_their_own() -> None:
    entry = understood({**FLAT, "metadata": '{"campaign": "spring"}', "metadata.lang": "de", "metadata.none": None})
    assert entry.metadata == {"campaign": "spring", "lang": "de"}


def test_the_envelope_of_a_batch_makes_the_video_that_the_api_makes() -> None:
    row = envelope(seconds="4", size="384x256", num_clip=20, metadata={"k": "v"}, seed=None, accept_alternatives=False)
    entry = understood(row)
    assert (entry.custom_id, entry.metadata, entry.original) == ("row-1", {"k": "v"}, row)
    spec = complete(entry.fields, defaults=entry.defaults)
    assert (spec.image, spec.audio, spec.prompt) == ("me.png", "s3://voices/voice.wav", "A woman talks.")
    assert (spec.max_seconds, spec.num_clip, str(spec.size)) == (4.0, 20, "384x256")


def test_the_portrait_of_an_envelope_may_be_called_as_openai_calls_it() -> None:
    row = envelope(image_reference=None, input_reference={"image_url": "/in/me.png", "file_id": None})
    assert understood(row).fields["image"] == "/in/me.png"


def test_a_field_of_a_preset_gives_way_to_the_row_and_wins_over_what_a_task_file_leaves_out() -> None:
    task = {**FLAT, "custom_id": None, "task_file": "task_001.json"}
    plain, preset = understood(task), understood({**task, "preset": "social"})
    assert (plain.custom_id, plain.fields.get("num_clip")) == ("task_001", None)
    assert complete(plain.fields, defaults=plain.defaults).num_clip == 50
    assert complete(preset.fields, defaults=preset.defaults).num_clip == 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"custom_id": None}, "custom_id is missing; give each row its own"),
        ({"custom_id": "a/b"}, "custom_id 'a/b' is not 1 to 64"),
        ({"promt": "A"}, "'promt' is not a field of a row (did you mean prompt?); leave it out, or call it metadata."),
        ({"priority": "bulk"}, "priority has no effect in a bulk run; leave it out: a run renders the longest"),
        ({"model": "live-avatar"}, "model has no effect in a bulk run; leave it out: the checkpoint of the run"),
        (
            {"image": "data:image/png;base64,AAAA"},
            "begins with data: and a bulk run reads no such address; put the file",
        ),
        ({"audio": "HTTPS://example.com/a.wav"}, "audio 'HTTPS://example.com/a.wav' begins with HTTPS://"),
        ({"audio": "file:///a.wav"}, "audio 'file:///a.wav' begins with file://"),
        ({"seconds": 0}, "seconds 0: input should be greater than 0"),
        ({"seconds": True}, "seconds True: input should be a valid integer"),
        ({"metadata": "spring"}, "metadata 'spring' is not JSON"),
        ({"metadata": ["a"]}, "metadata ['a']: input should be a valid dictionary"),
        ({"metadata": {"a": 1}}, "metadata.a 1: input should be a valid string"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "dictionary should have at most 16 items"),
        ({"metadata": {"a": "1"}, "metadata.a": "2"}, "metadata.a '2' stands in metadata too; write it once"),
        ({"metadata.": "2"}, "metadata..[key] ''"),
        ({"base": 7}, "base 7 is no folder"),
        ({"base": "https://example.com"}, "base 'https://example.com' begins with https://"),
        ({"task_file": "task_1.json"}, "custom_id 'row-1' is not the name of its task file, \"task_1.json\""),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_flat_row_that_breaks_a_rule_is_told_with_value_and_remedy(change: dict[str, object], said: str) -> None:
    bad = refused({**FLAT, **change})
    assert said in bad.error.message
    assert (bad.error.code, bad.error.stage, bad.number) == (Code.ROW_INVALID, "manifest", 7)
    assert bad.base == ("" if "base" in change else "/jobs")
    assert bad.original == {**FLAT, **change}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**envelope(), "method": "GET"}, "method 'GET' is not POST"),
        ({**envelope(), "url": "/v1/chat/completions"}, 'is not /v1/videos; write "url": "/v1/videos"'),
        ({"custom_id": "a", "body": BODY}, "method None is not POST"),
        ({**envelope(), "body": "text"}, "body 'text' is no JSON object"),
        ({**envelope(), "body": None}, "body None is no JSON object"),
        ({**envelope(), "seed": 7}, "seed 7 stands beside body"),
        (envelope(seeed=7), "'seeed' is not a field of a render (did you mean seed?)"),
        (envelope(num_clip=0), "num_clip 0: input should be greater than or equal to 1"),
        (envelope(image_reference=None), "image_reference or input_reference is missing; give one"),
        (envelope(input_reference={"image_url": "a.png"}), "image_reference or input_reference is given twice"),
        (envelope(audio_reference=None), "audio_reference is missing"),
        (envelope(audio_reference={"file_id": "file-1"}), "audio_reference.file_id 'file-1' is an upload of a service"),
        (envelope(audio_reference={}), "audio_reference has no audio_url"),
        (envelope(audio_reference={"audio_url": "data:audio/wav;base64,AA"}), "begins with data:"),
        (envelope(audio_reference="voice.wav"), "audio_reference 'voice.wav': input should be a valid dictionary"),
        (envelope(deadline_s=0), "deadline_s has no effect in a bulk run"),
        (envelope(user="me"), "user has no effect in a bulk run; leave it out, or write it into metadata"),
        (envelope(accept_alternatives=True), "accept_alternatives has no effect in a bulk run"),
        (envelope(webhook_url="https://example.com"), "webhook_url has no effect in a bulk run"),
    ],
)
def test_an_envelope_that_cannot_be_honoured_is_refused(row: dict[str, object], said: str) -> None:
    bad = refused(row)
    assert said in bad.error.message
    assert (bad.error.code, bad.custom_id) == (Code.ROW_INVALID, row["custom_id"])


def test_an_id_that_is_none_is_not_told_as_one() -> None:
    assert refused({**FLAT, "custom_id": "../up"}).custom_id == ""


def reported(row: Document) -> dict[str, Any]:
    """A row as it stands in errors.jsonl, read again."""
    entry = understood(row)
    error = RowError(Code.INPUT_MISSING, "image is not there", "inputs")
    line = json.dumps(BadRow(7, entry.original, entry.base, error, entry.custom_id).as_json())
    return dict(json.loads(line))


@pytest.mark.parametrize(
    "row",
    [
        FLAT,
        envelope(seconds=4),
        {**FLAT, "custom_id": None, "task_file": "task_1.json"},
        {**FLAT, "metadata.k": "v"},
        {**FLAT, "base": "s3://bucket/jobs"},
        {**FLAT, "base": "media"},
        {**FLAT, "base": None},
        {**FLAT, "base": ""},
        {"raw": json.dumps(FLAT), "base": "/elsewhere"},
        {"raw": json.dumps({**FLAT, "custom_id": "task_1"}), "task_file": "task_1.json"},
    ],
    ids=["flat", "envelope", "task file", "metadata", "base", "relative", "null", "empty", "raw", "raw task file"],
)
def test_a_line_of_errors_means_the_same_video_from_any_place(row: dict[str, object]) -> None:
    first, again = understood(row), read_row(reported(row), Place(number=1, base="/results"))
    assert isinstance(again, Entry)
    assert (again.custom_id, again.fields, again.defaults, again.metadata, again.base) == (
        first.custom_id,
        first.fields,
        first.defaults,
        first.metadata,
        first.base,
    )


def test_a_row_that_is_refused_keeps_its_own_base() -> None:
    assert refused({**FLAT, "base": "media", "promt": "x"}).as_json()["base"] == "/jobs/media"
    for wrong in (7, "http://host/media"):
        assert refused({**FLAT, "base": wrong}).as_json()["base"] == wrong


def test_a_base_is_found_from_the_manifest() -> None:
    assert understood({**FLAT, "base": "inputs"}).base == "/jobs/inputs"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"raw": "{half"}, "raw is not JSON"),
        ({"raw": 7}, "raw 7 is no text"),
        ({"raw": json.dumps({**FLAT, "prompt": "caf\ufffd"}, ensure_ascii=False)}, "has lost letters"),
        ({"raw": json.dumps({"custom_id": "a", "raw": json.dumps(FLAT)})}, "'raw' is not a field of a row"),
        ({"raw": json.dumps(FLAT), "seed": 7}, "seed 7 stands beside raw"),
    ],
)
def test_a_raw_row_that_is_still_none_stays_as_it_is(row: dict[str, object], said: str) -> None:
    bad = refused({**row, "line": 3, "error": {"code": "ROW_INVALID"}})
    assert said in bad.error.message
    assert bad.original == row
