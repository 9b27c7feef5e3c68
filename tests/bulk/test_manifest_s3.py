"""Manifests in a bucket are read as those on a disk are."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from serve_app.bulk.manifests.reading import find_audios, find_manifest, read_manifest, watch_manifest
from serve_app.bulk.outcomes import Code
from serve_app.bulk.row import BadRow, Entry
from serve_app.errors import InputNotFoundError, InvalidRequestError
from tests.storage.s3_servers import S3Server, moto_server, use

TASK = b'{"image": "me.png", "audio": "voice.wav", "prompt": "A woman talks."}'


@pytest.fixture(scope="module", name="server")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


class Bucket:
    """A new bucket, as somebody else fills it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._name = f"bucket-{uuid.uuid4().hex[:12]}"
        client.create_bucket(Bucket=self._name)

    def put(self, key: str, content: bytes = b"an input") -> str:
        self._client.put_object(Bucket=self._name, Key=key, Body=content)
        return f"{self.uri}/{key}"

    @property
    def uri(self) -> str:
        return f"s3://{self._name}"


@pytest.fixture(name="bucket")
def _bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    use(server, monkeypatch)
    return Bucket(server.client())


def parquet_bytes(custom_ids: list[str]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({"custom_id": custom_ids}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b'{"custom_id": "a"}\n{"custom_id": "b"}\n'),
        ("rows.csv", b"custom_id,image\na,\nb,\n"),
        ("rows.parquet", parquet_bytes(["a", "b"])),
    ],
    ids=["jsonl", "csv", "parquet"],
)
def test_a_file_is_read_and_its_prefix_is_the_base(bucket: Bucket, name: str, content: bytes) -> None:
    rows = list(read_manifest(find_manifest(bucket.put(f"jobs/{name}", content))))
    assert [(row.custom_id, row.base) for row in rows] == [("a", f"{bucket.uri}/jobs"), ("b", f"{bucket.uri}/jobs")]


def test_many_rows_are_read_piece_by_piece(bucket: Bucket) -> None:
    lines = [b'{"custom_id": "row-%d", "prompt": "%s"}' % (number, b"p" * 2_000) for number in range(5_000)]
    where = bucket.put("rows.jsonl", b"\n".join(lines))
    assert [row.custom_id for row in read_manifest(find_manifest(where))] == [
        f"row-{number}" for number in range(5_000)
    ]


def test_a_base_of_a_row_is_a_prefix_near_or_elsewhere(bucket: Bucket) -> None:
    where = bucket.put("jobs/rows.csv", b"custom_id,base\na,in\nb,s3://other/in\nc,/in\nd,../in\n")
    bases = [row.base for row in read_manifest(find_manifest(where))]
    assert bases == [f"{bucket.uri}/jobs/in", "s3://other/in", "/in", f"{bucket.uri}/in"]


@pytest.mark.parametrize("end", ["", "/"])
def test_a_prefix_of_task_files_is_a_manifest(bucket: Bucket, end: str) -> None:
    for key in ("jobs/task_1.json", "jobs/deep/task_2.json", "task_3.json"):
        bucket.put(key, TASK)
    (row,) = read_manifest(find_manifest(f"{bucket.uri}/jobs{end}"))
    assert (row.custom_id, row.base) == ("task_1", f"{bucket.uri}/jobs")


def test_sounds_are_paired_with_portraits_of_another_prefix(bucket: Bucket) -> None:
    for key in ("voices/anna.wav", "voices/bob.wav", "faces/anna.png"):
        bucket.put(key)
    source = find_audios(f"{bucket.uri}/voices", image=f"{bucket.uri}/faces", fields={"prompt": "A."})
    anna, bob = read_manifest(source)
    assert isinstance(anna, Entry)
    assert anna.fields["image"] == f"{bucket.uri}/faces/anna.png"
    assert anna.fields["audio"] == f"{bucket.uri}/voices/anna.wav"
    assert isinstance(bob, BadRow)
    assert bob.error.code is Code.INPUT_MISSING


def test_one_portrait_of_a_bucket_serves_all_sounds(bucket: Bucket) -> None:
    bucket.put("voices/anna.wav")
    (row,) = read_manifest(find_audios(f"{bucket.uri}/voices", image=f"{bucket.uri}/me.png", fields={"prompt": "A."}))
    assert row.original["image"] == f"{bucket.uri}/me.png"


def test_a_prefix_is_watched(bucket: Bucket) -> None:
    watch = watch_manifest(find_manifest(f"{bucket.uri}/jobs"))
    assert list(watch.poll()) == []
    bucket.put("jobs/task_1.json", TASK)
    assert list(watch.poll()) == []
    assert [row.custom_id for row in watch.poll()] == ["task_1"]


def test_what_is_not_in_a_bucket_is_no_manifest(bucket: Bucket) -> None:
    with pytest.raises(InputNotFoundError, match=r"rows\.jsonl"):
        list(read_manifest(find_manifest(f"{bucket.uri}/rows.jsonl")))
    with pytest.raises(InvalidRequestError, match=r"has no task_\*\.json"):
        list(read_manifest(find_manifest(f"{bucket.uri}/jobs")))
    with pytest.raises(InvalidRequestError, match="is neither a path nor s3"):
        find_manifest("https://example.com/rows.jsonl")
