"""What Ray says against a job is told as an error of ours."""

from __future__ import annotations

import pytest
from ray.exceptions import GetTimeoutError, RaySystemError

from serve_app.bulk.cluster import told_of_ray
from serve_app.errors import UnavailableError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GetTimeoutError("Get timed out: some objects are not ready."), "GetTimeoutError: Get timed out"),
        (
            RaySystemError("The actor died.\n  File x\nImportError: no av"),
            " The actor died. ... ImportError: no av; see",
        ),
    ],
)
def test_an_error_of_rays_tells_what_happened_and_what_to_do(error: Exception, said: str) -> None:
    with pytest.raises(UnavailableError) as caught, told_of_ray():
        raise error
    assert said in str(caught.value)
    assert "the same command continues" in str(caught.value)
    assert caught.value.__cause__ is error
