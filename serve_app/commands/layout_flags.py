"""The flags that say how ranks share a video: one in all, or those that users of the model know."""

from __future__ import annotations

import argparse

from serve_app.errors import InvalidRequestError
from serve_app.planning.layout import HARDWARE_PRESETS, ParallelLayout, from_flags

LAYOUT_FLAGS = ("num_gpus_dit", "ulysses_size", "enable_vae_parallel", "offload_model")


def add_layout(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    presets = ", ".join(HARDWARE_PRESETS)
    add("--layout", help=f"several ranks share the video: stages=4,vae=1 for example, or the machine: {presets}")
    add("--num-gpus-dit", type=int, metavar="N", help="ranks that denoise; --layout says it all in one")
    add("--ulysses-size", type=int, metavar="N", help="ranks that share each denoising call")
    switches = {"--enable-vae-parallel": "a rank of its own decodes", "--offload-model": "layers wait on the host"}
    for flag, what in switches.items():
        add(flag, nargs="?", const=True, type=_true_or_false, metavar="true|false", help=what)


def given_layout(options: argparse.Namespace) -> ParallelLayout | None:
    """Returns the layout that the flags ask for, None when they say nothing of one."""
    flags = {name: value for name in LAYOUT_FLAGS if (value := getattr(options, name)) is not None}
    if options.layout is None:
        return from_flags(**flags) if flags else None
    if flags:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in flags)
        raise InvalidRequestError(
            f"--layout and {named} both say how ranks share the video", remedy="give one of them", param="layout"
        )
    return ParallelLayout.parse(options.layout)


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"
