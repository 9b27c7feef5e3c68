"""Names of outputs: legal on every file system, the same for the same inputs, apart for others."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.bulk.manifests.names import (
    MAX_CHARACTERS,
    RESERVED,
    archive_name,
    check_custom_id,
    check_template,
    legal_name,
)
from serve_app.errors import InvalidRequestError


@pytest.mark.parametrize("written", ["a", "row-1", "Task_001", "a.b", "x" * 64, "com10", "console", "ledgers", "run"])
def test_an_id_of_plain_characters_is_taken_as_it_is(written: str) -> None:
    assert check_custom_id(written) == written
    assert legal_name(written) == written


def test_a_number_of_a_table_is_an_id() -> None:
    assert check_custom_id(7) == "7"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, "custom_id is missing; give each row its own"),
        (True, "custom_id True is no text"),
        (-1, "custom_id -1 is no text"),
        (1.0, "custom_id 1.0 is no text"),
        (10**5_000, "is no text"),
        (["a"], "is no text"),
        ("", "is not 1 to 64 of A-Z a-z 0-9 . _ -"),
        ("x" * 65, "is not 1 to 64"),
        ("a b", "custom_id 'a b' is not 1 to 64 of A-Z a-z 0-9 . _ -; write for example \"a_b\""),
        ("a/b", "is not 1 to 64"),
        ("a\n", "is not 1 to 64"),
        ("ünter", 'write for example "unter"'),
        ("\ud800", "is not 1 to 64"),
        (".", "begins or ends with a dot"),
        ("..", "begins or ends with a dot"),
        (".hidden", "begins or ends with a dot"),
        ("a.", "begins or ends with a dot"),
        *((name, "is a name that the run or the system needs itself") for name in sorted(RESERVED)),
        ("Run.JSON", "is a name that the run or the system needs itself"),
        ("ledger-7", "is a name that the run or the system needs itself"),
        ("nul", "is a name that the run or the system needs itself"),
        ("CON.mp4", "is a name that the run or the system needs itself"),
        ("com1.a.b", "is a name that the run or the system needs itself"),
        ("LPT9", "is a name that the run or the system needs itself"),
    ],
    ids=lambda value: repr(value)[:12] if not isinstance(value, int) else "number",
)
def test_an_id_that_can_be_no_folder_everywhere_is_refused_with_one_that_can(written: object, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_custom_id(written)
    assert said in str(refused.value)
    assert refused.value.param == "custom_id"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("my voice (2).v1", "my_voice__2_.v1"),
        ("Ärger über Öl", "Arger_uber_Ol"),
        ("ﬁnal²", "final2"),
        (" name. ", "name"),
        ("..a..", "a"),
        ("con", "_con"),
        ("nul.tar", "_nul.tar"),
        ("videos", "_videos"),
        ("a/../b\\c:d*e", "a_.._b_c_d_e"),
        ("“quoted” – text", "_quoted____text"),
    ],
)
def test_folds_what_has_an_ascii_letter_and_keeps_the_rest_out(text: str, name: str) -> None:
    assert legal_name(text) == name


def test_names_of_other_scripts_stay_apart() -> None:
    names = {legal_name(text) for text in ("你好", "再见", "привет", "здравствуй", "😀", "😁")}
    assert len(names) == 6
    assert all(re.fullmatch(r"_+-[0-9a-f]{8}", name) for name in names)


def test_a_long_name_is_cut_and_stays_apart_from_its_like() -> None:
    first, second = legal_name("a" * 80 + "1"), legal_name("a" * 80 + "2")
    assert first != second
    assert (len(first), first[:55]) == (MAX_CHARACTERS, "a" * 55)


@pytest.mark.parametrize("text", ["", "...", " . "])
def test_nothing_becomes_a_name_too(text: str) -> None:
    assert check_custom_id(legal_name(text)).startswith("_-")


@given(st.text(max_size=100))
@example("CON" + "." * 70)
@example("ledger-" + "9" * 60)
@example("\ud800")
@example("." * 70 + "a")
def test_a_name_is_always_legal_and_the_same_however_accents_are_written(text: str) -> None:
    name = legal_name(text)
    assert check_custom_id(name) == name
    assert legal_name(name) == name
    assert legal_name(unicodedata.normalize("NFD", text)) == legal_name(unicodedata.normalize("NFC", text)) == name


@given(st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True))
def test_what_is_a_legal_id_keeps_its_name(text: str) -> None:
    try:
        written = check_custom_id(text)
    except InvalidRequestError:
        return
    assert legal_name(written) == written


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{custom_id}", "row-1"),
        ("{stem}_avatar", "anna.v2_avatar"),
        ("{number:04}-{image_stem}", "0007-me"),
        ("{number}", "7"),
        ("{stem}{stem}/x", "anna.v2anna.v2_x"),
        ("{stem}" * 12, "anna.v2" * 7 + "anna.v-6aa0f0dd"),
    ],
)
def test_a_template_makes_the_name(template: str, name: str) -> None:
    made = archive_name(
        check_template(template),
        number=7,
        audio="s3://bucket/voices/anna.v2.wav",
        image="/in/me.png",
        custom_id="row-1",
    )
    assert made == name


def test_what_stands_in_a_file_name_is_no_placeholder() -> None:
    assert archive_name("{stem}", number=7, audio="{number}.wav", image="me.png") == "_number_"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{steam}", "unknown placeholder '{steam}' (did you mean stem?)"),
        ("{}", "unknown placeholder '{}'"),
        ("{stem.parent}", "unknown placeholder '{stem.parent}'"),
        ("{0}", "unknown placeholder"),
        ("{number!r}", "unknown placeholder"),
        ("{stem:9}", "only a number can be padded"),
        ("{number:9999999}", "only a number can be padded"),
        ("{number:x}", "only a number can be padded"),
        ("{number:0٣}", "only a number can be padded"),
        ("{number:}", "only a number can be padded"),
        ("{stem", "a brace without its other one"),
        ("{{stem}}", "a brace without its other one"),
        ("video", "is the same for every video"),
        ("", "is the same for every video"),
    ],
)
def test_a_template_that_cannot_work_is_refused_before_anything_runs(template: str, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_template(template)
    assert said in str(refused.value)
    assert refused.value.param == "name"


def test_a_refused_placeholder_is_told_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequestError, match=r"placeholders are \{stem\}, \{number\}"):
        check_template("{custom_id}", known=("stem", "number"))
