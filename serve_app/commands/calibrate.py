"""`live-avatar calibrate`: measures memory and time on this machine's GPU for `plan` to use."""

from __future__ import annotations

import argparse
from pathlib import Path

from serve_app.planning.calibration import DEFAULT_FILE
from serve_app.rendering.import_path import import_object


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=DEFAULT_FILE, help="file to write (default: the one plan reads)")
    parser.set_defaults(run=_calibrate, parser=parser)


def _calibrate(options: argparse.Namespace) -> int:
    return int(import_object("serve_app.engine.calibrate:main")(["--out", str(options.out)]))
