"""Opens an input file that a user named; what is inside is for the decoders to judge."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from serve_app.errors import InputNotFoundError, UnsupportedMediaError


def open_input(path: Path, *, max_bytes: int, param: str) -> BinaryIO:
    """Opens a regular file of 1 .. `max_bytes` bytes for reading.

    `param` names the request field in errors. Raises InputNotFoundError when there is no file that can be read,
    UnsupportedMediaError when it is empty or too large.
    """
    try:
        status = path.stat()
        # A pipe or a device would block or never end, so the kind is checked before the file is opened.
        if not stat.S_ISREG(status.st_mode):
            raise _not_found(f'"{path}" is not a regular file', param)
        check_bytes(str(path), status.st_size, max_bytes, param)
        return path.open("rb")
    # ValueError: a name with a NUL byte.
    except (OSError, ValueError) as error:
        raise _not_found(f'"{path}" cannot be read: {_reason(error)}', param) from error


def check_bytes(name: str, num_bytes: int, max_bytes: int, param: str) -> None:
    """Raises UnsupportedMediaError for a file that is empty, or larger than `max_bytes`."""
    if num_bytes == 0:
        raise UnsupportedMediaError(f'"{name}" is empty', remedy=f"give the path of a whole {param} file", param=param)
    if num_bytes > max_bytes:
        raise UnsupportedMediaError(
            f'"{name}" has {num_bytes} bytes; allowed are {max_bytes}',
            remedy=f"give a smaller {param} file",
            param=param,
        )


def _not_found(message: str, param: str) -> InputNotFoundError:
    return InputNotFoundError(message, remedy=f"give the path of an existing {param} file", param=param)


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
