"""Manifests of one file: every row is read or refused on its own, whatever stands around it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from serve_app.bulk.manifests.files import MAX_LINE_BYTES
from serve_app.bulk.manifests.reading import find_manifest, read_manifest
from serve_app.bulk.outcomes import Code
from serve_app.bulk.row import BadRow, Entry
from serve_app.errors import InputNotFoundError, InvalidRequestError
from serve_app.schemas.request import complete

Rows = list[Entry | BadRow]
HEADER = "custom_id,image,audio,prompt,num_clip,enable_online_decode,metadata.lang\n"


def line(custom_id: str, **more: object) -> bytes:
    return json.dumps({"custom_id": custom_id, "image": "a.png", "audio": "a.wav", "prompt": "A.", **more}).encode()


def read(tmp_path: Path, content: bytes, name: str = "rows.jsonl") -> Rows:
    path = tmp_path / name
    path.write_bytes(content)
    return list(read_manifest(find_manifest(str(path))))


def ids(rows: Rows) -> list[tuple[int, str]]:
    """The rows that were understood: number and id."""
    return [(row.number, row.custom_id) for row in rows if isinstance(row, Entry)]


def bad(rows: Rows) -> dict[int, BadRow]:
    return {row.number: row for row in rows if isinstance(row, BadRow)}


def refusal(tmp_path: Path, content: bytes, name: str = "rows.jsonl") -> str:
    with pytest.raises(InvalidRequestError) as refused:
        read(tmp_path, content, name)
    assert refused.value.param == "manifest"
    return str(refused.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.NDJSON", "rows.json"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
def test_json_lines_are_rows_with_the_numbers_of_their_lines(tmp_path: Path, name: str, end: bytes) -> None:
    rows = read(
        tmp_path, b"\xef\xbb\xbf" + end.join([line("a"), b"", b"  ", line("b", prompt="一位女士"), line("c")]), name
    )
    assert ids(rows) == [(1, "a"), (4, "b"), (5, "c")]
    assert (rows[1].base, rows[1].original["prompt"]) == (str(tmp_path), "一位女士")


def test_a_manifest_named_from_the_working_directory_has_a_base_that_does_not_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(line("a"))
    assert [row.base for row in read_manifest(find_manifest("rows.jsonl"))] == [str(tmp_path)]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"not JSON", "the line is not JSON in UTF-8 (Expecting value: column 1 (char 0)); write one JSON object"),
        (b'{"custom_id": "x"', "the line is not JSON in UTF-8"),
        (b'["a"]', "the line holds ['a'], which is no JSON object"),
        (b"7", "the line holds 7, which is no JSON object"),
        (b'{"seed": 1, "seed": 2}', "the line has the field 'seed' 2 times"),
        (b'{"body": {"seed": 1, "seed": 2}}', "the line has the field 'seed' 2 times"),
        (b'{"seed": NaN}', "the line holds NaN, which is no number of JSON"),
        (b'{"seconds": -Infinity}', "the line holds -Infinity"),
        (b'{"seconds": 1e999}', "the line holds '1e999', which is too large a number"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "the line is not JSON in UTF-8"),
        (b"[" * 100_000, "the line is not JSON in UTF-8"),
        (b'{"metadata": ' + b'{"a": ' * 40 + b"1" + b"}" * 41, "the line is nested more than 32 deep"),
        (b'{"prompt": "caf\xe9"}', "the line is not JSON in UTF-8 ('utf-8' codec can't decode byte 0xe9"),
        (b'{"custom_id": "caf\\ud800"}', "custom_id 'caf\\ud800' is not 1 to 64"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)
def test_a_bad_line_is_told_and_the_others_are_rows(tmp_path: Path, written: bytes, said: str) -> None:
    rows = read(tmp_path, b"\n".join([line("a"), written, line("b")]))
    assert ids(rows) == [(1, "a"), (3, "b")]
    assert said in bad(rows)[2].error.message
    assert bad(rows)[2].error.code is Code.ROW_INVALID


def test_what_is_no_row_is_kept_as_text_for_the_report(tmp_path: Path) -> None:
    rows = read(tmp_path, line("a") + b"\r\n" + b'{"prompt": "caf\xe9\r\n')
    assert bad(rows)[2].original == {"raw": '{"prompt": "caf\ufffd'}
    assert json.loads(json.dumps(bad(rows)[2].as_json()))["base"] == str(tmp_path)


def test_a_line_of_any_length_is_told_by_its_beginning(tmp_path: Path) -> None:
    longest = line("a", prompt="p" * (MAX_LINE_BYTES - len(line("a")) - 1))
    rows = read(tmp_path, b"\n".join([longest, line("b") + b" " * (3 * MAX_LINE_BYTES), line("c")]))
    assert ids(rows) == [(1, "a"), (3, "c")]
    assert "the row at line 2 has more than 1048576 bytes" in bad(rows)[2].error.message
    assert len(bad(rows)[2].original["raw"]) == 1_000


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", b"", "has no rows; write one row for each video"),
        ("rows.jsonl", b"\xef\xbb\xbf\n \n\n", "has no rows"),
        ("rows.jsonl", '{"custom_id": "a"}'.encode("utf-16"), "is not text in UTF-8; save it as UTF-8"),
        ("rows.jsonl", '{"custom_id": "a"}'.encode("utf-16-le"), "is not text in UTF-8"),
        ("rows.jsonl", b"\x1f\x8b\x08\x00\x00\x00", "is not text in UTF-8"),
        ("rows.jsonl", b'[{"custom_id": "a"}]', "does not have one JSON object on each line"),
        ("task_001.json", b'\xef\xbb\xbf{\n  "image": "a.png"\n}', "for task files, name their folder"),
        ("rows.csv", b"", "has no rows"),
        ("rows.csv", HEADER.encode(), "has no rows"),
        ("rows.csv", HEADER.encode() + b",,,,,,\n\n", "has no rows"),
        ("rows.csv", HEADER.encode("utf-16"), "is not text in UTF-8"),
        ("rows.csv", b"image,audio\na.png,a.wav\n", "has no column custom_id; it has ['image', 'audio']"),
        ("rows.csv", b"custom_id,image,image\n", "has the column 'image' 2 times"),
        (
            "rows.csv",
            b"custom_id,promt\n",
            "has a column too many: 'promt' is not a field of a row (did you mean prompt?)",
        ),
        ("rows.csv", b"custom_id,priority\n", "has a column too many: priority has no effect in a bulk run"),
        ("rows.csv", b"custom_id,caf\xe9\n", "is no CSV in UTF-8"),
        ("rows.csv", b"custom_id,image\ra,b\r", "is no CSV in UTF-8 (new-line character"),
        ("rows.csv", b'custom_id,"image\n', "is no CSV in UTF-8 (unexpected end of data)"),
        ("rows.parquet", b"", "cannot be read as Parquet"),
        ("rows.parquet", b"custom_id,image\n", "cannot be read as Parquet behind row 0"),
    ],
)
def test_what_is_no_manifest_at_all_is_an_error(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    message = refusal(tmp_path, content, name)
    assert said in message
    assert name in message


def test_csv_cells_are_text_numbers_truths_or_not_given(tmp_path: Path) -> None:
    table = HEADER + (
        'a, me.png ,voice.wav,"A woman, in ""navy"",\ntalks.",50,true,de\n'
        "\n"
        "b,me.png,voice.wav,A man talks.,,, \n"
        ",,,,,,\n"
    )
    rows = read(tmp_path, b"\xef\xbb\xbf" + table.encode(), "rows.CSV")
    assert ids(rows) == [(2, "a"), (5, "b")]
    first, second = (row for row in rows if isinstance(row, Entry))
    spec = complete(first.fields, defaults=first.defaults)
    assert (spec.image, spec.prompt) == ("me.png", 'A woman, in "navy",\ntalks.')
    assert (spec.num_clip, spec.enable_online_decode, first.metadata) == (50, True, {"lang": "de"})
    assert second.fields == {"image": "me.png", "audio": "voice.wav", "prompt": "A man talks."}
    assert complete(second.fields, defaults={}).num_clip is None


@pytest.mark.parametrize("delimiter", [";", "\t"], ids=["semicolon", "tab"])
def test_csv_of_other_countries_is_read(tmp_path: Path, delimiter: str) -> None:
    content = delimiter.join(["custom_id", "prompt"]) + "\r\n" + delimiter.join(["a", '"Yes, she talks."']) + "\r\n"
    rows = read(tmp_path, content.encode(), "rows.csv")
    assert ids(rows) == [(2, "a")]
    assert rows[0].original == {"custom_id": "a", "prompt": "Yes, she talks."}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (b"x,a.png", "the line has 2 cells, the header 3; put a text with commas in quotes"),
        (b"x,a.png,a.wav,more", "the line has 4 cells, the header 3"),
        (b"x,a.png,caf\xe9.wav", "the line is not UTF-8; save the manifest as UTF-8"),
        (b'x,a.png,"a"b', "the line is no CSV"),
        (b'x,"a.png,a.wav', "the line is no CSV"),
        (b"x,a.png," + b"p" * MAX_LINE_BYTES, "the row at line 3 has more than 1048576 bytes"),
        (b"x,a.png," + b"p" * 200_000, "field larger than field limit"),
    ],
    ids=["few", "many", "encoding", "quote inside", "open quote", "long line", "long cell"],
)
def test_a_bad_record_takes_no_other_with_it(tmp_path: Path, record: bytes, said: str) -> None:
    rows = read(tmp_path, b"\n".join([b"custom_id,image,audio", b"a,b,c", record, b"d,e,f", b"g,h,i"]), "rows.csv")
    assert ids(rows) == [(2, "a"), (4, "d"), (5, "g")]
    assert said in bad(rows)[3].error.message
    assert bad(rows)[3].original["raw"].startswith("x,")


def test_cells_over_so_many_lines_that_they_cannot_be_held_are_refused(tmp_path: Path) -> None:
    many = b'x,"' + (b"p" * 999 + b'","\n') * 300
    rows = read(tmp_path, b"custom_id,image\na,b\n" + many + b'"\nc,d\n', "rows.csv")
    assert ids(rows)[0] == (2, "a")
    assert ids(rows)[-1] == (304, "c")
    assert "the row at line 3 has more than 131072 bytes" in bad(rows)[3].error.message


def parquet_file(tmp_path: Path, columns: dict[str, Sequence[object]] | pa.Table) -> Path:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    return tmp_path / "rows.parquet"


def test_parquet_columns_are_fields_and_nulls_are_not_given(tmp_path: Path) -> None:
    path = parquet_file(
        tmp_path,
        {
            "custom_id": ["a", "b", None],
            "image": ["me.png", "me.png", "me.png"],
            "audio": ["voice.wav"] * 3,
            "prompt": ["A."] * 3,
            "num_clip": [50.0, float("nan"), None],
            "enable_online_decode": [False, None, None],
            "metadata": [{"lang": "de", "part": None}, None, None],
        },
    )
    rows = list(read_manifest(find_manifest(str(path))))
    assert ids(rows) == [(1, "a"), (2, "b")]
    first, second, third = rows
    assert isinstance(first, Entry)
    spec = complete(first.fields, defaults={})
    assert (spec.num_clip, spec.enable_online_decode, first.metadata) == (50, False, {"lang": "de"})
    assert second.original == {"custom_id": "b", "image": "me.png", "audio": "voice.wav", "prompt": "A."}
    assert isinstance(third, BadRow)
    assert "custom_id is missing" in third.error.message


def test_parquet_may_hold_numbers_as_ids_maps_and_envelopes(tmp_path: Path) -> None:
    body = {"prompt": "A.", "image_reference": {"image_url": "a.png"}, "audio_reference": {"audio_url": "a.wav"}}
    table = pa.table(
        {
            "custom_id": pa.array([1, 2]),
            "method": ["POST", "POST"],
            "url": ["/v1/videos", "/v1/videos"],
            "body": [{**body, "seconds": 2.5}, {**body, "seconds": None}],
        }
    )
    rows = list(read_manifest(find_manifest(str(parquet_file(tmp_path, table)))))
    assert ids(rows) == [(1, "1"), (2, "2")]
    assert [row.defaults for row in rows if isinstance(row, Entry)] == [{"max_seconds": 2.5}, {}]
    labels = pa.array([[("lang", "de")]], type=pa.map_(pa.string(), pa.string()))
    rows = list(
        read_manifest(find_manifest(str(parquet_file(tmp_path, pa.table({"custom_id": ["a"], "metadata": labels})))))
    )
    assert [row.metadata for row in rows if isinstance(row, Entry)] == [{"lang": "de"}]


def test_a_parquet_cell_that_json_does_not_know_is_told_as_text(tmp_path: Path) -> None:
    path = parquet_file(tmp_path, {"custom_id": [b"a"], "prompt": ["A."], "seconds": [float("inf")]})
    (row,) = read_manifest(find_manifest(str(path)))
    assert isinstance(row, BadRow)
    assert json.loads(json.dumps(row.as_json(), allow_nan=False))["seconds"] == "inf"


def a_map(*items: object, keys: pa.DataType) -> pa.Array:
    """One map for each row, of metadata."""
    return pa.array([[item] if isinstance(item, tuple) else item for item in items], pa.map_(keys, pa.string()))


def not_utf8(*texts: bytes) -> pa.Array:
    """A column of text as a writer leaves it that does not look at its letters."""
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


def twice_named(*values: str) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(values)] * 2, names=["lang", "lang"])


ODD_CELLS = {
    "date": ("metadata.day", pa.array([0, 2**31 - 1, 1], pa.int32()).cast(pa.date32()), "of type 'date32[day]'"),
    "moment": ("metadata.at", pa.array([0, 2**62, 1], pa.timestamp("us")), "cannot be understood"),
    "not UTF-8": (
        "metadata.note",
        not_utf8(b"A.", b"caf\xe9", b"B."),
        "of type 'string', cannot be understood ('utf-8'",
    ),
    "key of fields": (
        "metadata",
        a_map(None, ({"a": 1}, "x"), None, keys=pa.struct({"a": pa.int64()})),
        "cannot be understood (its key {'a': 1} is no text); write text or numbers there",
    ),
    "key not UTF-8": ("metadata", a_map((b"a", "x"), (b"\xe9", "x"), None, keys=pa.binary()), "can't decode byte 0xe9"),
    "key twice": (
        "metadata",
        a_map(("a", "x"), [("a", "x"), ("a", "y")], None, keys=pa.string()),
        "(its key 'a' is there twice)",
    ),
}


@pytest.mark.parametrize("case", ODD_CELLS)
def test_an_odd_parquet_cell_spoils_its_row_alone(tmp_path: Path, case: str) -> None:
    column, cells, said = ODD_CELLS[case]
    table = pa.table({"custom_id": ["a", "b", "c"], "seed": [1, 2, 3], column: cells})
    rows = list(read_manifest(find_manifest(str(parquet_file(tmp_path, table)))))
    assert ids(rows) == [(1, "a"), (3, "c")]
    refused = bad(rows)[2]
    assert f"{column!r}, of type " in refused.error.message
    assert said in refused.error.message
    assert (refused.custom_id, refused.original["custom_id"], refused.original["seed"]) == ("b", "b", 2)


@pytest.mark.parametrize("case", ODD_CELLS)
def test_a_row_with_an_odd_parquet_cell_is_refused_again_until_somebody_mends_it(tmp_path: Path, case: str) -> None:
    column, cells, _ = ODD_CELLS[case]
    path = parquet_file(tmp_path, {"custom_id": ["a", "b", "c"], column: cells})
    refused = bad(list(read_manifest(find_manifest(str(path)))))[2].as_json()
    (again,) = read(tmp_path, json.dumps(refused).encode(), "errors.jsonl")
    assert isinstance(again, BadRow)
    mended = {**refused, column: {} if column == "metadata" else "mended"}
    assert ids(read(tmp_path, json.dumps(mended).encode(), "errors.jsonl")) == [(1, "b")]


def test_parquet_columns_that_no_row_can_be_told_of_are_bad_rows(tmp_path: Path) -> None:
    table = pa.table({"custom_id": ["a", "b"], "metadata": twice_named("de", "fr")})
    rows = list(read_manifest(find_manifest(str(parquet_file(tmp_path, table)))))
    assert [row.number for row in rows if isinstance(row, BadRow)] == [1, 2]
    assert "duplicate field names" in bad(rows)[2].error.message


def test_parquet_text_is_text_also_where_the_file_calls_it_bytes(tmp_path: Path) -> None:
    table = pa.table(
        {
            "custom_id": pa.array([b"a", b"b", b"c"]),
            "prompt": pa.array(["Grüße.".encode(), None, b""]),
            "metadata": a_map((b"sprache", "de"), [], None, keys=pa.binary()),
        }
    )
    rows = list(read_manifest(find_manifest(str(parquet_file(tmp_path, table)))))
    assert ids(rows) == [(1, "a"), (2, "b"), (3, "c")]
    assert json.loads(json.dumps([row.original for row in rows])) == [
        {"custom_id": "a", "prompt": "Grüße.", "metadata": {"sprache": "de"}},
        {"custom_id": "b"},
        {"custom_id": "c", "prompt": ""},
    ]


def test_a_parquet_row_that_is_too_long_is_told_by_its_beginning(tmp_path: Path) -> None:
    longest = MAX_LINE_BYTES - len('{"custom_id": "a", "prompt": ""}')
    prompts = ["p" * longest, "p" * (longest + 1), "short"]
    path = parquet_file(tmp_path, {"custom_id": ["a", "b", "c"], "prompt": prompts})
    rows = list(read_manifest(find_manifest(str(path))))
    assert ids(rows) == [(1, "a"), (3, "c")]
    assert "the row at line 2 has more than 1048576 bytes" in bad(rows)[2].error.message
    assert bad(rows)[2].original == {"raw": '{"custom_id": "b", "prompt": "'.ljust(1_000, "p")}


def test_categories_of_parquet_are_not_counted_for_each_row(tmp_path: Path) -> None:
    prompts = pa.array([f"{number}{'p' * 1_000}" for number in range(2_000)]).dictionary_encode()
    table = pa.table({"custom_id": [str(number) for number in range(2_000)], "prompt": prompts})
    parquet.write_table(table, tmp_path / "rows.parquet")
    rows = list(read_manifest(find_manifest(str(tmp_path / "rows.parquet"))))
    assert [custom_id for _, custom_id in ids(rows)] == [str(number) for number in range(2_000)]


def test_a_text_that_many_parquet_rows_share_is_in_memory_a_few_times(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"custom_id": ["a"] * 1_000, "prompt": ["p" * 2 * MAX_LINE_BYTES] * 1_000}), path)
    assert path.stat().st_size < MAX_LINE_BYTES
    most_bytes, rows = 0, read_manifest(find_manifest(str(path)))
    for row in itertools.islice(rows, 100):
        assert "has more than 1048576 bytes" in bad([row])[row.number].error.message
        most_bytes = max(most_bytes, pa.total_allocated_bytes())
    assert most_bytes < 100 * MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": ["a"]}, "has no column custom_id"),
        ({"custom_id": ["a"], "promt": ["A."]}, "has a column too many: 'promt'"),
        ({"custom_id": pa.array([], pa.string())}, "has no rows"),
    ],
    ids=["no id", "unknown", "empty"],
)
def test_a_parquet_of_other_columns_is_no_manifest(tmp_path: Path, columns: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        list(read_manifest(find_manifest(str(parquet_file(tmp_path, pa.table(columns))))))
    assert said in str(refused.value)


def test_a_parquet_that_breaks_off_tells_how_far_it_was_read(tmp_path: Path) -> None:
    path = parquet_file(tmp_path, {"custom_id": [f"{number}-{'x' * 50}" for number in range(1_000)]})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2_000] = b"\xff" * 2_000
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"cannot be read as Parquet behind row \d+ \("):
        list(read_manifest(find_manifest(str(path))))


def test_a_manifest_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    for where in ("rows.jsonl", "folder", "a\0b.jsonl", "x" * 5_000):
        with pytest.raises(InputNotFoundError, match="is neither a file nor a folder"):
            find_manifest(str(tmp_path / where))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line("a"))
    source = find_manifest(str(path))
    path.unlink()
    with pytest.raises(InputNotFoundError, match=r"rows\.jsonl"):
        next(read_manifest(source))


def test_a_file_of_another_kind_is_refused_with_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(InvalidRequestError, match=r"ends in \.jsonl, \.ndjson, \.json, \.csv, \.parquet, or a folder"):
        find_manifest(str(tmp_path / "rows.xlsx"))


@given(position=st.floats(0, 1), noise=st.binary(min_size=1, max_size=8), cut=st.integers(0, 8))
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_damaged_bytes_spoil_at_most_the_lines_that_they_are_in(
    tmp_path_factory: pytest.TempPathFactory, name: str, position: float, noise: bytes, cut: int
) -> None:
    records = [f'"{number}",a.png,a.wav,"A, b."'.encode() for number in range(20)]
    whole = b"\n".join([line(str(number)) for number in range(20)] if name.endswith("l") else records) + b"\n"
    start = int(position * len(whole))
    damaged = whole[:start] + noise + whole[start + cut :]
    header = b"" if name.endswith("l") else b"custom_id,image,audio,prompt\n"
    try:
        rows = read(tmp_path_factory.getbasetemp(), header + damaged, name)
    except InvalidRequestError:  # a NUL at the beginning, or an array
        return
    untouched = {row.custom_id for row in rows if isinstance(row, Entry)}
    assert len(untouched) >= 20 - 2 - noise.count(b"\n")
    assert all(json.dumps(row.as_json()) for row in rows if isinstance(row, BadRow))
