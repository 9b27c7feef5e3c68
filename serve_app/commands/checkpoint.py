"""`live-avatar convert` and `live-avatar checkpoint verify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serve_app.rendering.import_path import import_object


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder to read")
    parser.add_argument("--out", type=Path, required=True, help="new folder to write")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the large networks (default bfloat16)"
    )
    parser.set_defaults(run=_convert, parser=parser)


def _convert(options: argparse.Namespace) -> int:
    convert = import_object("serve_app.model.convert:convert")
    convert(
        options.checkpoint,
        options.out,
        dtype=options.dtype,
        on_network=lambda role: print(f"writing {role} ...", file=sys.stderr),
    )
    print(f"{options.out}: converted to {options.dtype}, LoRA merged")
    return 0


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="folder to verify")
    parser.set_defaults(run=_verify, parser=parser)


def _verify(options: argparse.Namespace) -> int:
    """Prints a line per network; exit code 1 when one has a problem."""
    is_sound = True
    for report in import_object("serve_app.model.verify:verify")(options.checkpoint):
        is_sound &= not report.problem
        found = f"{report.num_tensors} tensors, {report.num_parameters} parameters"
        print(f"{report.role:<16}{report.problem or f'ok, {found}'}")
    return 0 if is_sound else 1
