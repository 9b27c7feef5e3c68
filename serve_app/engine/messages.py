"""What flows from rank to rank while a video is made; where one rank does all, from function to function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from serve_app.distributed.channel import Packet, Receiver
from serve_app.engine.conditions import Conditions
from serve_app.planning.geometry import BlockPosition, Timeline

FIRST_MESSAGES = 2
"""The opening and block 0: what loading, conditioning and warming up may delay."""


@dataclass(frozen=True, eq=False)
class Opening:
    """Comes first, once."""

    conditions: Conditions


@dataclass(frozen=True, eq=False)
class WorkingBlock:
    """A block on its way: latents float32 [16, 3, h, w], its voice [1, 25, C, 12] as long as steps are to come."""

    position: BlockPosition
    latents: Tensor
    voice: Tensor | None


@dataclass(frozen=True)
class Pause:
    """No block is due yet, but all is well: sent now and then while the consumer of the frames takes its time."""


Message = Opening | WorkingBlock | Pause

_OPENING, _BLOCK, _PAUSE, _END = range(4)


def packed(message: Message) -> Packet:
    """Returns the message as it travels."""
    match message:
        case Opening(conditions):
            return Packet(_OPENING, tensors=(conditions.text, conditions.motion))
        case WorkingBlock(position, latents, voice):
            return Packet(_BLOCK, position.index, (latents,) if voice is None else (latents, voice))
        case Pause():
            return Packet(_PAUSE)


def end(peak_bytes: int) -> Packet:
    """Returns what comes after the last block, or after that at which a cancel was seen: the same on every rank.

    It tells the most memory that a rank so far took for the video.
    """
    return Packet(_END, index=peak_bytes)


def received(
    upstream: Receiver, timeline: Timeline, *, first_s: float, later_s: float, on_end: Callable[[int], None]
) -> Iterator[Message]:
    """Yields the messages of one video; `on_end` is given what `end` tells.

    Raises RankError when the next message does not come in time.
    """
    count = 0
    while True:
        packet = upstream.receive(timeout_s=first_s if count < FIRST_MESSAGES else later_s)
        if packet.kind == _END:
            on_end(packet.index)
            return
        count += packet.kind != _PAUSE
        yield _unpacked(packet, timeline)


def _unpacked(packet: Packet, timeline: Timeline) -> Message:
    if packet.kind == _OPENING:
        text, motion = packet.tensors
        return Opening(Conditions(text=text, motion=motion))
    if packet.kind == _BLOCK:
        latents, *voice = packet.tensors
        return WorkingBlock(timeline.position(packet.index), latents, voice[0] if voice else None)
    assert packet.kind == _PAUSE, f"message of unknown kind {packet.kind}"
    return Pause()
