"""What a program raised, as a value that crosses processes whatever the exception is made of."""

from __future__ import annotations

import io
import pickle
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

from ray_cluster.errors import rebuild_exception


@dataclass(frozen=True)
class Raised:
    """An exception and where it came from. `at`: the rank's clock, seconds since the epoch."""

    type_name: str
    text: str
    traceback: str
    is_out_of_memory: bool
    at: float
    pickled: bytes

    @classmethod
    def of(cls, error: Exception) -> Raised:
        """Packs an exception; one that does not pickle travels as text alone."""
        return cls(
            type_name=f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
            text=str(error),
            traceback="".join(traceback.format_exception(error)),
            is_out_of_memory=is_out_of_memory(error),
            at=time.time(),
            pickled=_pickled(error),
        )

    def cause(self) -> Exception | None:
        """Returns the exception, if everything that it is made of is known to this process already.

        An error from a rank must not load torch into a process that has none.
        """
        try:
            kind, args, state = _KnownOnly(io.BytesIO(self.pickled)).load()
            return rebuild_exception(kind, args, state)
        except Exception:
            return None


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out, of the machine, of a GPU (torch's class, by its name) or in Ray's eyes."""
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _pickled(error: Exception) -> bytes:
    try:
        return pickle.dumps((type(error), error.args, vars(error)), protocol=5)
    except Exception:
        return b""


class _KnownOnly(pickle.Unpickler):
    """Refuses to import; the bytes come from a rank of our own gang."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if module not in sys.modules:
            raise pickle.UnpicklingError(f"{module} is not loaded here")
        return super().find_class(module, name)
