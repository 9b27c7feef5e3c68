"""`live-avatar doctor`: is this machine fit to render?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from serve_app.doctor.examination import Question, as_json, as_table, examine, is_healthy
from serve_app.schemas.config import AppConfig


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="also look at this checkpoint folder")
    parser.add_argument("--port", type=int, nargs="+", default=[], metavar="N", help="ports that must be free")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=_doctor, parser=parser)


def _doctor(options: argparse.Namespace) -> int:
    """Prints what every check of this machine found; exit code 1 when one found a problem."""
    cache_dir = AppConfig().cache_dir
    findings = examine(
        Question(output_dir=Path(), cache_dir=cache_dir, ports=options.port, checkpoint=options.checkpoint)
    )
    print(json.dumps(as_json(findings), indent=2) if options.json else as_table(findings))
    return 0 if is_healthy(findings) else 1
