"""What becomes of a row that fails: a code, its class, whether another attempt may help."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


class Fault(enum.StrEnum):
    """Whose fault it is: the class of an error."""

    INPUT = "input"
    CAPACITY = "capacity"
    INFRA = "infra"
    MODEL = "model"
    OUTPUT = "output"
    CANCELLED = "cancelled"


class Code(enum.StrEnum):
    """Stable codes of failed rows; `FAULT_OF` tells the class of each."""

    ROW_INVALID = "ROW_INVALID"
    DUPLICATE_ID = "DUPLICATE_ID"
    INPUT_MISSING = "INPUT_MISSING"
    INPUT_UNREACHABLE = "INPUT_UNREACHABLE"
    INPUT_UNDECODABLE = "INPUT_UNDECODABLE"
    AUDIO_TOO_SHORT = "AUDIO_TOO_SHORT"
    PROMPT_INVALID = "PROMPT_INVALID"
    NEVER_FITS = "NEVER_FITS"
    OVER_BUDGET = "OVER_BUDGET"
    NCCL_TIMEOUT = "NCCL_TIMEOUT"
    RANK_DIED = "RANK_DIED"
    NODE_LOST = "NODE_LOST"
    BLOCK_STALL = "BLOCK_STALL"
    NAN_LATENT = "NAN_LATENT"
    ENCODE_FAILED = "ENCODE_FAILED"
    UPLOAD_FAILED = "UPLOAD_FAILED"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


FAULT_OF: Mapping[Code, Fault] = MappingProxyType(
    {
        Code.ROW_INVALID: Fault.INPUT,
        Code.DUPLICATE_ID: Fault.INPUT,
        Code.INPUT_MISSING: Fault.INPUT,
        Code.INPUT_UNREACHABLE: Fault.INFRA,
        Code.INPUT_UNDECODABLE: Fault.INPUT,
        Code.AUDIO_TOO_SHORT: Fault.INPUT,
        Code.PROMPT_INVALID: Fault.INPUT,
        Code.NEVER_FITS: Fault.CAPACITY,
        Code.OVER_BUDGET: Fault.CAPACITY,
        Code.NCCL_TIMEOUT: Fault.INFRA,
        Code.RANK_DIED: Fault.INFRA,
        Code.NODE_LOST: Fault.INFRA,
        Code.BLOCK_STALL: Fault.INFRA,
        Code.NAN_LATENT: Fault.MODEL,
        Code.ENCODE_FAILED: Fault.OUTPUT,
        Code.UPLOAD_FAILED: Fault.OUTPUT,
        Code.TIMEOUT: Fault.INFRA,
        Code.CANCELLED: Fault.CANCELLED,
        Code.INTERNAL: Fault.INFRA,
    }
)
_NEVER_RETRIED = (Fault.INPUT, Fault.CANCELLED)


@dataclass(frozen=True)
class RowError:
    """Why a row failed. `stage`: manifest, inputs, plan, render, encode, upload; `attempt` 0: before the first one."""

    code: Code
    message: str
    stage: str
    attempt: int = 0
    group: str = ""
    blocks_done: int = 0
    log_uri: str = ""

    @property
    def fault(self) -> Fault:
        return FAULT_OF[self.code]

    @property
    def is_retryable(self) -> bool:
        """Whether another attempt may succeed; what never fits does so however often it is tried."""
        return self.fault not in _NEVER_RETRIED and self.code is not Code.NEVER_FITS

    def as_json(self) -> dict[str, Any]:
        """Returns the error as reports tell it."""
        return {
            "code": self.code.value,
            "class": self.fault.value,
            "retryable": self.is_retryable,
            "message": self.message,
            "stage": self.stage,
            "attempt": self.attempt,
            "group": self.group,
            "blocks_done": self.blocks_done,
            "log_uri": self.log_uri,
        }
