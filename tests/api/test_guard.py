"""What every request meets: ids, hosts, web pages of others, and errors of our own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Serve, Server


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/videos/video_0", 404, "job_not_found"),
        ("GET", "/v1/videos/..%2F..%2Fjobs.sqlite/content", 404, "not_found"),
        ("GET", "/v1/videos/%00/content", 404, "job_not_found"),
        ("GET", f"/v1/videos/{'x' * 2000}", 404, "job_not_found"),
        ("GET", "/v1/videos/%F0%9F%8E%AC", 404, "job_not_found"),
        ("GET", "/v1/files/file_0/content", 404, "file_not_found"),
        ("GET", "/v1/videos/", 404, "not_found"),
        ("DELETE", "/v1/files/", 404, "not_found"),
        ("PUT", "/v1/videos", 405, "method_not_allowed"),
        ("POST", "/v1/presets", 405, "method_not_allowed"),
        ("GET", "/v1/videos?after=video_0", 404, "job_not_found"),
        ("GET", "/v1/files?after=file_0", 404, "file_not_found"),
    ],
)
def test_every_error_has_the_envelope(server: Server, method: str, path: str, status: int, code: str) -> None:
    error = server.error(server.client.request(method, path), status, code)
    assert len(error["message"]) < 500


def test_a_fault_of_ours_tells_no_internals(server: Server) -> None:
    server.service.breaks = True
    answer = server.post()
    error = server.error(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "X-Request-Id" in error["message"]
    assert answer.headers["X-Request-Id"].startswith("req_")
    assert server.stored_files() == []


@pytest.mark.parametrize(("given", "is_taken"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("", False)])
def test_an_answer_has_an_id_and_a_clients_own_when_it_is_one(server: Server, given: str, is_taken: bool) -> None:
    told = server.client.get("/livez", headers={"X-Request-Id": given}).headers["X-Request-Id"]
    assert (told == given) is is_taken
    assert len(told) <= 64


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": "10.0.0.1:8000"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_web_pages_of_others_and_other_names_are_refused(server: Server, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/v1/videos"), ("POST", "/v1/videos"), ("GET", "/docs"), ("GET", "/v1/nothing")):
        answer = server.client.request(method, path, headers=headers)
        server.error(answer, 403, "forbidden")
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost:1234"},
        {"Host": "LOCALHOST"},
        {"Host": "[::1]:80"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Host": "localhost:80", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Authorization": "Bearer whatever"},
    ],
)
def test_own_names_own_pages_and_links_are_served(server: Server, headers: dict[str, str]) -> None:
    assert server.client.get("/v1/videos", headers=headers).status_code == 200


def test_an_operator_names_the_hosts(serve: Serve) -> None:
    with serve(allowed_hosts=["videos.example"]) as server:
        assert server.client.get("/v1/videos", headers={"Host": "videos.example:443"}).status_code == 200
        server.error(server.client.get("/v1/videos"), 403, "forbidden")
        assert server.client.get("/livez").status_code == server.client.get("/readyz").status_code == 200
    with serve(allowed_hosts=["*"]) as server:
        assert server.client.get("/v1/videos", headers={"Host": "any.example"}).status_code == 200
        foreign = {"Host": "any.example", "Origin": "https://other.example"}
        server.error(server.client.get("/v1/videos", headers=foreign), 403, "forbidden")
        nameless = {"Host": "", "Origin": "null"}
        server.error(server.client.get("/v1/videos", headers=nameless), 403, "forbidden")


def test_what_there_is_can_be_asked(server: Server) -> None:
    assert server.client.get("/v1/capacity").json()["pools"] == []
    presets = server.client.get("/v1/presets").json()
    assert [preset["name"] for preset in presets["data"]] == ["fast_preview", "social", "high_fidelity", "long_video"]
    assert server.client.get("/docs").status_code == 200


def test_the_schema_documents_every_route_with_its_errors(server: Server) -> None:
    schema: dict[str, Any] = server.client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/v1/videos",
        "/v1/videos/plan",
        "/v1/videos/sync",
        "/v1/videos/{video_id}",
        "/v1/videos/{video_id}/cancel",
        "/v1/videos/{video_id}/content",
        "/v1/videos/{video_id}/events",
        "/v1/files",
        "/v1/files/{file_id}",
        "/v1/files/{file_id}/content",
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/presets",
        "/v1/capacity",
        "/livez",
        "/readyz",
    }
    operations = [one for path in schema["paths"].values() for one in path.values()]
    for operation in operations:
        assert operation["summary"]
        assert operation["tags"]
        assert operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorAnswer")
        assert operation["responses"]["200"]["content"]
    assert "HTTPValidationError" not in str(schema)
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    referred = {ref.split('"')[0] for ref in str(schema).replace("'", '"').split("#/components/schemas/")[1:]}
    assert referred <= set(schema["components"]["schemas"])
