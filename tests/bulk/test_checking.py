"""What is checked before anything is rendered: every way in which a row can be wrong, and whose settings win."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk.checking import Checker, check_all
from serve_app.bulk.inputs import InputReader
from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.row import BadRow, Entry
from serve_app.bulk.table import PlannedRow
from serve_app.errors import InvalidRequestError
from serve_app.jobs.admission import DoesNotFit, Fits, Nearest
from serve_app.planning.hardware import GIB
from serve_app.planning.workload import Workload
from serve_app.schemas.config import AppConfig
from tests.bulk.rows import entry, write_portrait, write_voice


def judge(work: Workload) -> Fits | DoesNotFit:
    """Lets everything fit but videos of 128 pixels in width; they take as long as they are."""
    if work.size.width == 128:
        return DoesNotFit("the KV cache", 30 * GIB, 24 * GIB, (Nearest("use size 64*64", "64*64", 48),))
    return Fits(work.num_frames / 25)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_portrait(tmp_path / "me.png")
    write_voice(tmp_path / "voice.wav")
    return tmp_path


def checker(*, name: str | None = None, **defaults: Any) -> Checker:
    return Checker(AppConfig(), judge, InputReader(AppConfig(), Path()), defaults, name)


def checked(row: Entry, **given: Any) -> PlannedRow:
    result = checker(**given).check(row)
    assert isinstance(result, PlannedRow), result
    return result


def refused(row: Entry, **given: Any) -> RowError:
    result = checker(**given).check(row)
    assert isinstance(result, BadRow), result
    assert (result.number, result.custom_id, result.original) == (row.number, row.custom_id, row.original)
    return result.error


def test_a_good_row_is_planned_with_all_that_is_known_of_it(folder: Path) -> None:
    row = replace(entry(folder, "intro", number=7), metadata={"campaign": "spring"})
    planned = checked(row)
    assert (planned.number, planned.custom_id, planned.num_frames, planned.predicted_s) == (7, "intro", 30, 1.2)
    assert planned.spec["image"] == str(folder / "me.png")
    assert planned.spec["audio"] == str(folder / "voice.wav")
    assert planned.origin["metadata"] == {"campaign": "spring"}
    assert (planned.origin["original"], planned.origin["base"]) == (row.original, str(folder))
    assert planned.archive_name is None


def test_what_may_disappoint_is_told_with_the_row(folder: Path) -> None:
    write_portrait(folder / "small.png", width=100, height=100)
    assert "100" in "".join(checked(entry(folder, image="small.png")).origin["warnings"])


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize("where", ["nowhere", "sub/nowhere.png", "/nowhere/at/all.png", "..", "../.."])
def test_an_input_that_is_not_there_names_it_and_where_it_was_looked_for(folder: Path, kind: str, where: str) -> None:
    error = refused(entry(folder, **{kind: where}))
    assert (error.code, error.stage) == (Code.INPUT_MISSING, "inputs")
    assert f"{kind} '{where}' is not there; looked for" in error.message


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize("where", ["", "a\0b", "s3://bucket", "s3://UPPER CASE/me.png", "ftp://host/me.png"])
def test_what_is_no_place_of_a_file_is_invalid(folder: Path, kind: str, where: str) -> None:
    error = refused(entry(folder, **{kind: where}))
    assert (error.code, error.stage) == (Code.ROW_INVALID, "manifest")


def test_an_input_that_is_a_folder_is_not_there(folder: Path) -> None:
    assert refused(entry(folder, image=str(folder))).code is Code.INPUT_MISSING


@pytest.mark.parametrize(("kind", "name"), [("image", "me.png"), ("audio", "voice.wav")])
def test_an_input_that_cannot_be_read_may_be_another_time(folder: Path, kind: str, name: str) -> None:
    too_long = "x" * 300 + Path(name).suffix
    error = refused(entry(folder, **{kind: too_long}))
    assert (error.code, error.stage, error.is_retryable) == (Code.INPUT_UNREACHABLE, "inputs", True)
    assert "File name too long" in error.message


@pytest.mark.parametrize("name", ["me.png", "voice.wav"])
def test_an_input_that_is_none_is_undecodable(folder: Path, name: str) -> None:
    for content in (b"", b"noise" * 1000, (folder / name).read_bytes()[:60]):
        (folder / name).write_bytes(content)
        error = refused(entry(folder))
        assert (error.code, error.stage) == (Code.INPUT_UNDECODABLE, "inputs")
        assert name in error.message


def test_the_other_kind_of_input_is_undecodable(folder: Path) -> None:
    assert refused(entry(folder, image="voice.wav")).code is Code.INPUT_UNDECODABLE
    assert refused(entry(folder, audio="me.png")).code is Code.INPUT_UNDECODABLE


def test_a_voice_that_is_over_before_it_began_is_too_short(folder: Path) -> None:
    write_voice(folder / "short.wav", seconds=0.1)
    error = refused(entry(folder, audio="short.wav"))
    assert (error.code, error.stage) == (Code.AUDIO_TOO_SHORT, "inputs")


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "&nbsp;", "x" * 4_001, 5])
def test_a_prompt_that_says_nothing_or_too_much_is_invalid(folder: Path, prompt: object) -> None:
    error = refused(entry(folder, prompt=prompt))
    assert (error.code, error.stage) == (Code.PROMPT_INVALID, "manifest")


def test_inputs_of_a_row_that_is_invalid_anyway_are_not_read(folder: Path) -> None:
    assert refused(entry(folder, prompt=" ", image="nowhere.png")).code is Code.PROMPT_INVALID


@pytest.mark.parametrize("missing", ["image", "audio"])
def test_a_row_that_lacks_an_input_is_invalid(folder: Path, missing: str) -> None:
    error = refused(entry(folder, **{missing: None}))
    assert error.code is Code.ROW_INVALID
    assert f"{missing} is missing" in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "huge"},
        {"size": "100*100", "fit": "exact"},
        {"fit": "stretch"},
        {"num_clip": 0},
        {"infer_frames": 32},
        {"sample_steps": "many"},
        {"seed": -1},
        {"seed": True},
        {"preset": "nicest"},
        {"sample_guide_scale": 5},
        {"image": 5},
        {"image": "\ud800.png"},
    ],
    ids=str,
)
def test_a_value_that_breaks_a_rule_is_named(folder: Path, fields: dict[str, Any]) -> None:
    error = refused(entry(folder, **fields))
    assert (error.code, error.stage, error.is_retryable) == (Code.ROW_INVALID, "manifest", False)
    assert next(iter(fields)) in error.message


def test_a_video_that_never_fits_says_how_it_would(folder: Path) -> None:
    write_portrait(folder / "wide.png", width=512, height=256)
    error = refused(entry(folder, image="wide.png", size="128*64"))
    assert (error.code, error.stage, error.is_retryable) == (Code.NEVER_FITS, "plan", False)
    for part in ("30.00 GiB", "24.00 GiB", "the KV cache", "use size 64*64"):
        assert part in error.message


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("me.png", "me.png"),
        ("./me.png", "me.png"),
        ("sub/../me.png", "me.png"),
        ("{base}/me.png", "me.png"),
        ("kept.png", "inputs/images/kept.png"),
        ("deep/kept.png", "inputs/images/deep/kept.png"),
        ("inputs/images/kept.png", "inputs/images/kept.png"),
    ],
)
def test_an_image_is_found_beside_the_manifest_and_where_users_keep_them(
    folder: Path, written: str, found: str
) -> None:
    for place in ("inputs/images/kept.png", "inputs/images/deep/kept.png"):
        write_portrait(folder / place)
    assert checked(entry(folder, image=written.format(base=folder))).spec["image"] == str(folder / found)


@pytest.mark.parametrize("written", ["kept.wav", "deep/kept.wav"])
def test_a_voice_is_found_where_users_keep_them(folder: Path, written: str) -> None:
    voice = write_voice(folder / "inputs" / "audios" / written)
    assert checked(entry(folder, audio=written)).spec["audio"] == str(voice)


def test_inputs_are_found_beside_a_folder_of_manifests(folder: Path) -> None:
    write_portrait(folder / "inputs" / "images" / "portrait.png")
    (folder / "tasks").mkdir()
    planned = checked(entry(folder / "tasks", image="portrait.png", audio="../voice.wav"))
    assert planned.spec["image"] == str(folder / "inputs" / "images" / "portrait.png")
    assert planned.spec["audio"] == str(folder / "voice.wav")


def test_what_stands_beside_the_manifest_comes_before_what_is_kept_elsewhere(folder: Path) -> None:
    write_portrait(folder / "inputs" / "images" / "me.png", grey=10)
    assert checked(entry(folder)).spec["image"] == str(folder / "me.png")


def spec_of(folder: Path, row: dict[str, Any], row_defaults: dict[str, Any], **run: Any) -> dict[str, Any]:
    written = replace(entry(folder, size=None, **row), defaults=row_defaults)
    return dict(checked(written, **run).spec)


@pytest.mark.parametrize("preset", [{}, {"preset": "social"}])
def test_a_row_s_own_setting_wins_over_every_other(folder: Path, preset: dict[str, str]) -> None:
    row = {"num_clip": 1, **preset}
    assert spec_of(folder, row, {"num_clip": 50}, num_clip=7, preset="fast_preview", size="64*64")["num_clip"] == 1
    assert spec_of(folder, row, {"num_clip": 50}, num_clip=7, size="64*64")["num_clip"] == 1


def test_a_row_s_own_preset_wins_over_what_the_run_sets(folder: Path) -> None:
    spec = spec_of(folder, {"preset": "fast_preview"}, {"num_clip": 50}, num_clip=7, preset="social", size="64*64")
    assert (spec["num_clip"], spec["sample_steps"], spec["size"]) == (20, 3, "384x256")


def test_what_the_run_sets_wins_over_its_preset(folder: Path) -> None:
    spec = spec_of(folder, {}, {"num_clip": 50}, num_clip=7, preset="fast_preview", size="64*64")
    assert (spec["num_clip"], spec["sample_steps"], spec["infer_frames"], spec["size"]) == (7, 3, 36, "64x64")


def test_what_the_run_sets_wins_over_what_task_files_begin_with(folder: Path) -> None:
    assert spec_of(folder, {}, {"num_clip": 50}, num_clip=7, size="64*64")["num_clip"] == 7
    assert spec_of(folder, {}, {"num_clip": 50}, preset="fast_preview")["num_clip"] == 20
    assert spec_of(folder, {}, {"num_clip": 50}, size="64*64")["num_clip"] == 50


def test_a_row_s_seconds_stay_whatever_the_run_sets(folder: Path) -> None:
    assert spec_of(folder, {}, {"max_seconds": 0.5}, num_clip=7, preset="fast_preview")["max_seconds"] == 0.5


def test_without_any_setting_the_model_s_own_count(folder: Path) -> None:
    spec = spec_of(folder, {}, {})
    assert (spec["size"], spec["num_clip"], spec["sample_steps"], spec["seed"]) == ("704x384", None, 4, 420)


@pytest.mark.parametrize("defaults", [{"preset": "nicest"}, {"infer_frames": 32}, {"size": "huge"}, {"sizes": "64*64"}])
def test_a_setting_of_the_run_that_would_spoil_every_row_is_refused_before_the_first(defaults: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(defaults))):
        checker(**defaults)


def test_a_name_in_the_archive_is_made_of_the_inputs(folder: Path) -> None:
    write_voice(folder / "hello all.wav")
    planned = checked(entry(folder, number=3, audio="hello all.wav"), name="{number:03}-{stem}-{image_stem}")
    assert planned.archive_name == "003-hello_all-me"


def test_rows_come_in_the_order_in_which_they_were_read(folder: Path) -> None:
    rows: list[Entry | BadRow] = []
    for number in range(1, 60):
        image = "me.png" if number % 3 else "nowhere.png"
        rows.append(entry(folder, f"row-{number}", number=number, image=image))
    rows.insert(10, BadRow(99, {}, "", RowError(Code.ROW_INVALID, "no JSON", "manifest")))
    told = list(check_all(rows, checker(), num_threads=4))
    assert [row.number for row in told] == [row.number for row in rows]
    assert [isinstance(row, BadRow) for row in told] == [isinstance(row, BadRow) or row.number % 3 == 0 for row in rows]


def test_several_rows_are_read_at_once_and_few_are_held(folder: Path) -> None:
    together, num_read = threading.Barrier(3, timeout=30), 0

    def meet(work: Workload) -> Fits | DoesNotFit:
        if num_read <= 3 * 4:
            together.wait()
        return judge(work)

    def rows() -> Iterator[Entry]:
        nonlocal num_read
        for number in range(1, 1_000):
            num_read += 1
            yield entry(folder, f"row-{number}", number=number)

    checking = check_all(rows(), replace(checker(), judge=meet), num_threads=3)
    first = next(checking)
    assert first.number == 1
    assert num_read == 3 * 4
    checking.close()  # type: ignore[attr-defined]


def test_a_bug_is_no_fault_of_a_row(folder: Path) -> None:
    def broken(work: Workload) -> Fits | DoesNotFit:
        raise ZeroDivisionError(work)

    with pytest.raises(ZeroDivisionError):
        list(check_all([entry(folder)], replace(checker(), judge=broken), num_threads=1))
