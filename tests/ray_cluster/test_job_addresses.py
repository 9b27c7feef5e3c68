"""Addresses that are no dashboard's, or none that this machine can use: each is told by its own error."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ray_cluster.job import (
    MAX_COMMAND_BYTES,
    HeadAddressError,
    HeadUnreachableError,
    JobRefusedError,
    JobSpec,
    new_job_id,
)
from ray_cluster.job_client import JobTimeouts, dashboard_address
from ray_cluster.job_submit import connect
from tests.ray_cluster.heads import free_port

HASTY = JobTimeouts(answer_s=0.3)
VERSION = json.dumps({"ray_version": "2.60.0"})
Answer = tuple[int, str, str]
"""Status, content type (of a redirection: the place), body."""


@contextmanager
def answering(answers: dict[str, Answer], certificate: Path | None = None) -> Iterator[str]:
    """A server that gives these answers, and none at all for what is not among them; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in answers:
                done.wait()
                return
            status, kind, body = answers[self.path]
            self.send_response(status)
            self.send_header("Location" if status == 302 else "Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    done = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_port}"
    finally:
        done.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("head:8265", "http://head:8265"),
        ("https://rays.example/cluster/1//", "https://rays.example/cluster/1"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_an_address_may_be_written_in_some_ways(given: str, meant: str) -> None:
    assert dashboard_address(given) == meant


@pytest.mark.parametrize(
    "given", ["", "auto", "ray://head:10001", "http://", "http://head:port", "http://head:99999", "http://h/?a=b"]
)
def test_what_is_no_address_is_refused_with_an_example(given: str) -> None:
    if given == "auto":  # may be the name of a machine
        assert dashboard_address(given) == "http://auto"
        return
    with pytest.raises(HeadAddressError, match="http://HEAD:8265"):
        dashboard_address(given)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, "text/html", "<html><title>A shop</title></html>"), "no Ray dashboard: it answers 200.*A shop"),
        ((404, "text/plain", "404 page not found"), "no Ray dashboard: it answers 404"),
        ((200, "application/json", '{"version": "7"}'), "without the version of a Ray"),
        ((200, "application/json", "[]"), "without the version of a Ray"),
        ((200, "application/json", "{"), "no Ray dashboard"),
        ((302, "https://login.example/", ""), "it sends on to https://login.example/"),
        ((200, "application/json", '{"ray_version": "2.9.3"}'), r"runs Ray 2.9.3, jobs need 2.60 at least; upgrade"),
    ],
    ids=["HTML", "404", "other JSON", "list", "broken JSON", "elsewhere", "old"],
)
def test_what_answers_but_is_no_dashboard_is_told_apart(answer: Answer, said: str) -> None:
    with answering({"/api/version": answer}) as address, pytest.raises(HeadAddressError, match=said):
        connect(address, timeouts=HASTY)


def test_a_dashboard_that_is_just_starting_is_one_to_try_again() -> None:
    answer = (503, "text/html", "<html>starting</html>")
    with (
        answering({"/api/version": answer}) as address,
        pytest.raises(HeadUnreachableError, match=r"answers 503.*try again"),
    ):
        connect(address, timeouts=HASTY)


@pytest.mark.parametrize("is_silent", [True, False])
def test_nobody_at_an_address_is_told_within_the_limit(*, is_silent: bool) -> None:
    with answering({}) as address:
        tried = address if is_silent else f"http://127.0.0.1:{free_port()}"
        with pytest.raises(HeadUnreachableError, match="timed out" if is_silent else "Connection refused"):
            connect(tried, timeouts=HASTY)


def test_a_name_that_nobody_has_is_told() -> None:
    with pytest.raises(HeadUnreachableError, match=r"nowhere.invalid.*this machine reaches it"):
        connect("http://nowhere.invalid:8265", timeouts=HASTY)


def test_a_newer_cluster_that_speaks_in_unknown_words_names_both_versions() -> None:
    job = json.dumps({"type": "SUBMISSION", "status": "PONDERING", "entrypoint": "x", "submission_id": "one"})
    answers = {
        "/api/version": (200, "application/json", VERSION.replace("2.60.0", "3.1.0")),
        "/api/jobs/one": (200, "application/json", job),
    }
    with answering(answers) as address, pytest.raises(JobRefusedError, match=r"Ray 3.1.0 of the.*ray\[default\]==3.1"):
        connect(address, timeouts=HASTY).find("one")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by nobody, with its key."""
    path = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(path) + ".cert"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    path.write_text(path.read_text() + Path(f"{path}.cert").read_text())
    return path


def test_a_certificate_counts_only_if_somebody_vouches_for_it(certificate: Path) -> None:
    answers = {
        "/api/version": (200, "application/json", VERSION),
        "/api/jobs/one": (404, "text/plain", "one does not exist"),
    }
    with answering(answers, certificate) as address:
        with pytest.raises(HeadUnreachableError, match=r"CERTIFICATE_VERIFY_FAILED.*trust the certificate"):
            connect(address)
        assert connect(address, verify=f"{certificate}.cert").find("one") is None
        with pytest.raises(HeadUnreachableError):
            connect(address.replace("https", "http"), timeouts=HASTY)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: JobSpec("a/b", ("true",)), "submission id 'a/b'"),
        (lambda: JobSpec("", ("true",)), "submission id ''"),
        (lambda: JobSpec("job", ()), "no words"),
        (lambda: JobSpec("job", ("true",), num_cpus=-1), "less than nothing"),
        (lambda: JobSpec("job", ("echo", "\udcff")), "no UTF-8"),
        (lambda: JobSpec("job", ("echo", "'" * (MAX_COMMAND_BYTES // 5))), "at most 131071"),
    ],
)
def test_what_no_job_can_be_is_refused_before_anything_is_sent(make: Callable[[], JobSpec], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_ids_tell_when_they_were_made_and_differ() -> None:
    ids = {new_job_id("avatar-bulk") for _ in range(8)}
    assert len(ids) == 8
    assert all(JobSpec(name, ("true",)) for name in ids)
