"""Rules of form: every manifest is of a kind that has a schema here, and is as that schema says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.k8s.manifests import Manifest

_SCHEMAS = Path(__file__).parent / "schemas"


def manifests_follow_their_schemas(manifests: list[Manifest]) -> list[str]:
    """Unknown fields are errors too."""
    return [
        f"{manifest['kind']} {manifest['metadata']['name']}: {error.json_path}: {error.message}"
        for manifest in manifests
        for error in _validator(manifest["apiVersion"], manifest["kind"]).iter_errors(manifest)
    ]


@cache
def _validator(api_version: str, kind: str) -> Draft202012Validator:
    schema: dict[str, Any] = json.loads((_SCHEMAS / f"{kind.lower()}.json").read_text(encoding="utf-8"))
    known = schema["properties"]
    assert (known["apiVersion"]["const"], known["kind"]["const"]) == (api_version, kind)
    return Draft202012Validator(schema)
