"""The `live-avatar` command."""

from __future__ import annotations

import argparse
import io
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ray_cluster.errors import ClusterError
from serve_app.commands.bulk import add_bulk
from serve_app.commands.calibrate import add_calibrate
from serve_app.commands.checkpoint import add_convert, add_verify
from serve_app.commands.demo import add_demo
from serve_app.commands.doctor import add_doctor
from serve_app.commands.plan import add_plan
from serve_app.commands.render import add_render
from serve_app.commands.serve import add_serve
from serve_app.commands.submit import add_submit
from serve_app.errors import AvatarError, GangFailedError, RenderCancelledError, did_you_mean

STOP_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
FAILED = 1
WHOLE_OR_NOTHING = ("render", "convert", "demo")
"""Commands that write a single result, at their end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 bad input, 3 never fits, 130 or 143
    stopped by Ctrl-C or SIGTERM."""
    stop = _StopSignals()
    try:
        stop.listen()
        _print_any_name()
        words = sys.argv[1:] if arguments is None else arguments
        options = _parse(words)
        options.words = words[1:]
        options.is_stopped = stop.is_received
        options.stop_exit_code = lambda: stop.exit_code
        options.stopping_later = stop.later
        stop.leaves_nothing = options.command in WHOLE_OR_NOTHING
        return int(options.run(options))
    except (AvatarError, ClusterError) as error:
        if not stop.explains(error):
            _tell(error)
        if not stop.is_received():
            return error.exit_code if isinstance(error, AvatarError) else FAILED
    except BaseException:
        if not stop.is_received():
            raise
    # Once stopped, whatever ended the work did so because of that.
    print(f"live-avatar: {stop.message}", file=sys.stderr)
    return stop.exit_code


def _tell(error: AvatarError | ClusterError) -> None:
    if isinstance(error, GangFailedError) and error.details:
        print(error.details, file=sys.stderr)
    print(f"live-avatar: {error}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; flags are spelled with dashes (`with_dashes` maps the other spelling)."""
    parser = argparse.ArgumentParser(prog="live-avatar", description="A portrait, a voice and a sentence: a video.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_render(commands.add_parser("render", help="render one video on this machine", allow_abbrev=False))
    add_plan(
        commands.add_parser("plan", help="does a video fit these cards, and how long does it take", allow_abbrev=False)
    )
    add_serve(commands.add_parser("serve", help="serve videos over HTTP on this machine", allow_abbrev=False))
    add_bulk(commands.add_parser("bulk", help="render a whole manifest", allow_abbrev=False))
    submit = commands.add_parser(
        "submit", help="render a manifest as a Ray job", allow_abbrev=False, conflict_handler="resolve"
    )
    add_submit(submit)
    add_demo(commands.add_parser("demo", help="send the built-in sample through the service", allow_abbrev=False))
    add_calibrate(commands.add_parser("calibrate", help="measure this GPU for plan", allow_abbrev=False))
    add_convert(commands.add_parser("convert", help="merge and cast a checkpoint folder", allow_abbrev=False))
    checkpoint = commands.add_parser("checkpoint", help="look after checkpoint folders").add_subparsers(required=True)
    add_verify(checkpoint.add_parser("verify", help="read every tensor and name what is wrong", allow_abbrev=False))
    add_doctor(commands.add_parser("doctor", help="look whether this machine is fit to render", allow_abbrev=False))
    return parser


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with `--num_clip` spelled `--num-clip`; values are left alone."""
    return [_dashed(argument) if argument.startswith("--") else argument for argument in arguments]


def _dashed(flag: str) -> str:
    name, equals, value = flag.partition("=")
    if " " in name:  # argparse takes it for the value of the flag before it, a prompt for example
        return flag
    return name.replace("_", "-") + equals + value


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments; what is unknown ends the process with the usage of its command and a likely flag."""
    options, unknown = build_parser().parse_known_args(with_dashes(arguments))
    if unknown:
        parser: argparse.ArgumentParser = options.parser
        flags = re.findall(r"--([a-z-]+)", parser.format_usage())
        hint = did_you_mean(unknown[0].partition("=")[0].removeprefix("--"), flags, prefix="--")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


class _Stopped(BaseException):
    """Ends the work wherever a signal finds it.

    A class of its own, because Python ends a process by the signal instead of its exit code when a
    KeyboardInterrupt has passed through an `exec` on its way, of which imports have many.
    """


class _StopSignals:
    """Ctrl-C and SIGTERM. A library that swallows the exception only delays the end to the next block border."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._raises = True
        self._has_raised = False
        self.leaves_nothing = False

    def listen(self) -> None:
        for kind in STOP_SIGNALS:
            if signal.getsignal(kind) is not signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
                signal.signal(kind, self._stop)
        sys.unraisablehook = _say_unless_stopped

    def is_received(self) -> bool:
        return self._received is not None

    def explains(self, error: Exception) -> bool:
        """Whether an error is no news: the work broke off where the signal raised, or says that it was stopped.

        An error of work that was to stop later may tell what nobody else does: a job that was perhaps submitted.
        """
        return self._has_raised or (self.is_received() and isinstance(error, RenderCancelledError))

    @property
    def message(self) -> str:
        assert self._received is not None
        left = "; nothing was written" if self.leaves_nothing else ""
        return f"{STOP_SIGNALS[signal.Signals(self._received)]}{left}"

    @property
    def exit_code(self) -> int:
        assert self._received is not None
        return 128 + self._received

    @contextmanager
    def later(self) -> Iterator[None]:
        """Only notes the first signal, for code that no exception may interrupt and that asks `is_received` itself."""
        self._raises = False
        try:
            yield
        finally:
            self._raises = True

    def _stop(self, kind: int, _frame: FrameType | None) -> None:
        is_first, self._received = self._received is None, kind
        if self._raises or not is_first:
            self._has_raised = True
            raise _Stopped


def _say_unless_stopped(unraisable: sys.UnraisableHookArgs) -> None:
    if not isinstance(unraisable.exc_value, _Stopped):
        sys.__unraisablehook__(unraisable)


def _print_any_name() -> None:
    """Lets file names that are no text be printed, in escapes, as standard error does by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
