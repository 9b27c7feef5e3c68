"""Makes the built-in samples: a drawn portrait, a spoken greeting and the sentence that goes with them.

`python -m serve_app.samples.make OUT_DIR` writes portrait.png, speech.wav and prompt.txt.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from serve_app.errors import OutputError
from serve_app.samples.portrait import draw_portrait

SPEECH = "Hello! I am a drawing, and now I can speak."
VOICE = ("-v", "en-us+f3", "-s", "165", "-p", "45")
SPEECH_TIMEOUT_S = 30.0
PROMPT = (
    "A friendly woman with chin-length dark brown hair, wearing a navy blazer over a cream top, facing the camera and "
    "speaking calmly, in front of a plain sage-green wall, soft even light, flat illustration, corporate video style."
)


def main(out_dir: Path) -> None:
    """Writes the three samples into `out_dir`, which it makes when needed."""
    out_dir.mkdir(parents=True, exist_ok=True)
    draw_portrait().save(out_dir / "portrait.png", optimize=True)
    speak(SPEECH, out_dir / "speech.wav")
    (out_dir / "prompt.txt").write_text(PROMPT + "\n", encoding="utf-8")


def speak(text: str, path: Path) -> None:
    """Writes `text`, spoken by espeak-ng, as a mono 16-bit WAV of 22050 Hz.

    Raises OutputError when espeak-ng is missing, fails or takes too long.
    """
    command = ["espeak-ng", *VOICE, "-w", str(path), text]
    try:
        subprocess.run(command, check=True, timeout=SPEECH_TIMEOUT_S)  # noqa: S603 (every word is ours)
    except FileNotFoundError as error:
        raise OutputError(
            f"{path} cannot be spoken: espeak-ng is not installed", remedy="install it: apt-get install espeak-ng"
        ) from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise OutputError(
            f"espeak-ng could not write {path}: {error}", remedy="check the folder and its space"
        ) from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the built-in samples.")
    parser.add_argument("out_dir", type=Path)
    main(parser.parse_args().out_dir)
