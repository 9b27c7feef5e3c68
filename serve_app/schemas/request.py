"""From what a user wrote down to a complete RenderSpec: flags, task files, manifests and HTTP bodies alike."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.errors import InvalidRequestError, shown
from serve_app.schemas.presets import find_preset
from serve_app.schemas.render import RenderSpec, unknown_field

_SET_BY_API = "max_seconds"
REQUEST_FIELDS = (*(name for name in RenderSpec.model_fields if name != _SET_BY_API), "preset", "sample_guide_scale")
"""What users write; HTTP has further fields, of which one, `seconds`, becomes `max_seconds` among the defaults."""


def complete(given: Mapping[str, object], *, defaults: Mapping[str, object]) -> RenderSpec:
    """Returns the spec of a request: what is given wins over its preset, that over `defaults`, those over RenderSpec's.

    Raises InvalidRequestError for a field or a preset that does not exist, and for a value that breaks a rule.
    """
    for name in given:
        if name not in REQUEST_FIELDS:
            raise unknown_field(name, REQUEST_FIELDS)
    _check_guide_scale(given.get("sample_guide_scale", 0))
    preset = find_preset(given["preset"]).settings if "preset" in given else {}
    wanted = {name: value for name, value in given.items() if name in RenderSpec.model_fields}
    return RenderSpec.from_request(**{**defaults, **preset, **wanted})


def _check_guide_scale(scale: object) -> None:
    if scale not in (0, "0"):
        raise InvalidRequestError(
            f"sample_guide_scale {shown(scale)}: only 0 is allowed; guidance has no effect in the causal model",
            remedy="leave it out, and describe in the prompt what the video shall show",
            param="sample_guide_scale",
        )
