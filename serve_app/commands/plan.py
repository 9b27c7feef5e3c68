"""`live-avatar plan`: does a video fit these cards, and how long would it take?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ray_cluster.inventory import local_gpus
from ray_cluster.nvml import GpuReadError, NoGpus
from serve_app.commands.layout_flags import LAYOUT_FLAGS, add_layout, given_layout
from serve_app.errors import InvalidRequestError
from serve_app.plan_report.matrix import as_matrix
from serve_app.plan_report.plan import make_plan
from serve_app.plan_report.question import AUTO, read_question
from serve_app.plan_report.report import as_json, as_table
from serve_app.planning.calibration import DEFAULT_FILE, load_calibration
from serve_app.planning.feasibility import NeverFits
from serve_app.planning.hardware import Gpus, measured_kind
from serve_app.schemas.config import AppConfig
from serve_app.schemas.presets import PRESETS
from serve_app.schemas.render import DEFAULT_INFER_FRAMES, DEFAULT_SAMPLE_STEPS, DEFAULT_SIZE
from serve_app.schemas.request import REQUEST_FIELDS

NEVER_FITS = 3
"""The exit code of `plan` when the answer is no."""


def add_plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--gpus", default=AUTO, help=f"4x24, 4xRTX4090, 1xH100, ...; {AUTO} (default) looks what there is")
    add("--image", help="portrait, which decides the aspect ratio (default: that of --size)")
    add("--audio", help="voice, which decides the length (default: --num-clip clips, or a minute)")
    add("--preset", metavar="NAME", help=f"{', '.join(PRESETS)}; flags win over it")
    add("--size", help=f"WIDTH*HEIGHT (default {DEFAULT_SIZE})")
    add("--fit", choices=("area", "exact"), help="--size as an area cap (default), or exactly")
    add("--num-clip", type=int, help="end after so many clips")
    add("--infer-frames", type=int, help=f"frames per clip and KV window (default {DEFAULT_INFER_FRAMES})")
    add("--sample-steps", type=int, help=f"denoising steps per block (default {DEFAULT_SAMPLE_STEPS})")
    add_layout(parser)
    add("--calibration", type=Path, default=DEFAULT_FILE, metavar="FILE", help="another one, made by calibrate")
    add("--matrix", action="store_true", help="print what fits where: usual sizes by hardware, as Markdown")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=_plan, parser=parser)


def _plan(options: argparse.Namespace) -> int:
    """Prints the plan; exit code 3 when the video never fits."""
    calibration = load_calibration(options.calibration)
    if options.matrix:
        _check_alone(options)
        print(as_matrix(calibration))
        return 0
    given = {name: value for name in REQUEST_FIELDS if (value := getattr(options, name, None)) is not None}
    question = read_question(
        given, gpus=options.gpus, layout=given_layout(options), inventory=_inventory, config=AppConfig()
    )
    plan = make_plan(question, calibration=calibration)
    print(json.dumps(as_json(plan), indent=2) if options.json else as_table(plan))
    return NEVER_FITS if isinstance(plan.verdict, NeverFits) else 0


def _check_alone(options: argparse.Namespace) -> None:
    """Raises InvalidRequestError when a flag is given beside --matrix that would change nothing."""
    given = [name for name in (*REQUEST_FIELDS, "layout", *LAYOUT_FLAGS) if getattr(options, name, None) is not None]
    given += ["gpus"] * (options.gpus != AUTO) + ["json"] * options.json
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InvalidRequestError(
            f"{named} beside --matrix, which shows the usual sizes on the usual machines, as Markdown",
            remedy="give --matrix alone or with --calibration; leave it out to plan one video",
            param="matrix",
        )


def _inventory() -> Gpus:
    """Returns the cards of this machine; the smallest stands for all. Raises InvalidRequestError where none are."""
    try:
        found = local_gpus()
    except GpuReadError as error:
        raise _not_auto(str(error)) from error
    if isinstance(found, NoGpus):
        raise _not_auto(found.reason)
    smallest = min(found, key=lambda gpu: gpu.total_bytes)
    return Gpus(len(found), measured_kind(smallest.kind, smallest.total_bytes))


def _not_auto(reason: str) -> InvalidRequestError:
    remedy = "name the cards to plan for, for example --gpus 4x24"
    return InvalidRequestError(f"gpus {AUTO}: {reason}", remedy=remedy, param="gpus")
