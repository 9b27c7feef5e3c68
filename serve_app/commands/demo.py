"""`live-avatar demo`: the built-in sample through the whole service."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Never

from tqdm import tqdm

from serve_app.commands.serve import service_config
from serve_app.rendering.import_path import import_object
from serve_app.schemas.service import ServiceConfig


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `demo`."""
    parser.add_argument("--out", type=Path, default=Path("output.mp4"), help="where the MP4 goes (default output.mp4)")
    parser.set_defaults(run=_demo, parser=parser)


def _demo(options: argparse.Namespace) -> int:
    run_demo: Any = import_object("serve_app.demo:run_demo")  # Ray takes a second to import
    with options.stopping_later(), _Story() as story:
        run_demo(options.out, config_of=_config, on_event=story.tell, is_cancelled=options.is_stopped)
    print(f"{options.out}: made by the service, {story.num_blocks} blocks over HTTP")
    return 0


def _config(data_dir: Path) -> ServiceConfig:
    return service_config({}, data_dir=data_dir, allow_anonymous=True)


class _Story:
    """Tells on standard error what happens: a line per state, a bar for the blocks."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None
        self.num_blocks = 0

    def __enter__(self) -> _Story:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def tell(self, name: str, content: dict[str, Any]) -> None:
        if name == "block":
            self.num_blocks = int(content["num_blocks"])
            if self._bar is None:
                self._bar = tqdm(total=self.num_blocks, unit="block", file=sys.stderr)
            self._bar.update(int(content["blocks_done"]) - self._bar.n)
        elif name == "starting":
            print(f"starting the service at {content['url']} ...", file=sys.stderr)
        else:
            print(name, file=sys.stderr)
