"""What an API replica finds out about the proxies before it."""

from __future__ import annotations

import pytest
from ray.serve._private.utils import call_function_from_import_path

from serve_app.api.flow_proxy import IMPORT_PATH, SETTING, FlowTeller
from serve_app.deployments.ingress import check_proxies


@pytest.mark.parametrize("environment", [{}, {SETTING: "mine:middlewares"}])
def test_proxies_that_do_not_tell_what_clients_take_are_warned_of(
    environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    check_proxies(environment)
    [record] = caplog.records
    assert f"{SETTING}={IMPORT_PATH}" in record.remedy  # type: ignore[attr-defined]


def test_proxies_that_tell_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    check_proxies({SETTING: IMPORT_PATH})
    assert not caplog.records


def test_serve_finds_there_what_it_puts_before_its_proxies() -> None:
    [middleware] = call_function_from_import_path(IMPORT_PATH)
    assert middleware.cls is FlowTeller
