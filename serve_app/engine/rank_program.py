"""AvatarProgram: what a rank runs. It loads the networks of its role once and renders one task after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ray_cluster.program import RunControl, Seat, StartReport
from serve_app.distributed import rendezvous
from serve_app.distributed.channel import Packet, Sender
from serve_app.distributed.mesh import Mesh
from serve_app.distributed.timestep_pipeline import ReferenceReturn
from serve_app.engine.decoding import to_pixels
from serve_app.engine.messages import Message, WorkingBlock, end, packed, received
from serve_app.engine.networks import Networks, load_networks
from serve_app.engine.peak_memory import PeakMemory
from serve_app.engine.rollout import RolloutPlan, drawn_distance
from serve_app.engine.sampler import begin_blocks, decode, denoise
from serve_app.model.flow_match import euler_schedule
from serve_app.planning.layout import ParallelLayout, Role
from serve_app.task import FrameBlock, RenderTask


@dataclass(frozen=True)
class _Deadlines:
    meet_s: float
    first_s: float
    later_s: float


class AvatarProgram:
    """One rank's networks and neighbours. Nothing of a video outlives its task."""

    def __init__(
        self,
        *,
        checkpoint: str,
        cache_dir: Path,
        layout: str = "single",
        meet_s: float = 300.0,
        first_s: float = 900.0,
        later_s: float = 300.0,
    ) -> None:
        """`checkpoint` is a folder, or "tiny" for the built-in model. Raises InvalidRequestError for a bad layout.

        The seconds are how long a rank waits for the others: to meet them, for the first messages of a video, which
        wait for conditioning and whatever a first call takes, and for all later ones. What waits longer is lost: the
        rank raises RankError, and the gang ends.
        """
        self._checkpoint = checkpoint
        self._cache_dir = cache_dir
        self._layout = ParallelLayout.parse(layout)
        self._deadlines = _Deadlines(meet_s, first_s, later_s)
        self._store: TCPStore | None = None
        self._mesh: Mesh
        self._networks: Networks

    def open_rendezvous(self, host: str) -> str:
        """See RankProgram; called on rank 0 alone."""
        self._store, address = rendezvous.open_store(host)
        return address

    def start(self, seat: Seat) -> StartReport:
        """Meets the other ranks and loads what this role needs; raises RankError, CheckpointError."""
        torch.backends.cudnn.deterministic = True  # same seed, same bytes
        deadlines = self._deadlines
        self._mesh = Mesh(
            self._layout, seat, store=self._store, meet_s=deadlines.meet_s, collective_s=deadlines.later_s
        )
        self._networks = load_networks(self._checkpoint, self._cache_dir, self._mesh)
        return StartReport(
            role=str(self._mesh.place), is_output=self._mesh.is_output, facts=self._networks.facts(self._mesh)
        )

    def run(self, task: RenderTask, control: RunControl) -> Iterator[FrameBlock]:
        """Yields, on the output rank, the frames of the video block by block; a cancelled one ends early."""
        blocks = self._frame_blocks(task, control)
        while True:
            # Entered anew for each block: inference mode must not leak into whoever consumes the frames.
            with torch.inference_mode():
                block = next(blocks, None)
            if block is None:
                return
            yield block

    def close(self) -> None:
        """Leaves the gang."""
        self._mesh.close()
        self._store = None

    def sent_bytes(self) -> dict[str, int]:
        """Returns what this rank has sent so far, by purpose."""
        return self._mesh.traffic.by_purpose()

    def _frame_blocks(self, task: RenderTask, control: RunControl) -> Iterator[FrameBlock]:
        mesh, plan, memory = self._mesh, _plan(task), PeakMemory(self._mesh)
        incoming = self._incoming(task, plan, memory, control)
        messages = _sent(incoming, mesh.copies, peak_bytes=lambda: 0)  # they hear of it on their axis
        if mesh.place.role is Role.STAGE:
            assert self._networks.dit is not None, "a stage has the transformer"
            messages = denoise(
                messages,
                self._networks.dit,
                plan,
                steps=mesh.layout.steps_of(mesh.place.stage, task.sample_steps),
                references=ReferenceReturn(mesh, timeout_s=self._deadlines.first_s),
                control=control,
            )
            if mesh.is_last_stage:
                messages = map(_without_voice, messages)
        if mesh.is_decoder:
            yield from self._decoded(messages, plan, memory, control)
        else:
            for _ in _sent(messages, mesh.downstream, peak_bytes=memory.largest):
                pass
        mesh.flush()

    def _incoming(
        self, task: RenderTask, plan: RolloutPlan, memory: PeakMemory, control: RunControl
    ) -> Iterator[Message]:
        """Yields what this rank works on: messages from upstream, or on the source those that it makes."""
        upstream, deadlines = self._mesh.upstream, self._deadlines
        if upstream is not None:
            control.note("waits for the source")
            yield from received(
                upstream,
                plan.timeline,
                first_s=deadlines.first_s,
                later_s=deadlines.later_s,
                on_end=memory.hear,
            )
            return
        conditioner = self._networks.conditioner
        assert conditioner is not None, "the source has the encoders"
        control.note("makes the conditions")
        conditions = conditioner.conditions(task)
        yield from begin_blocks(
            conditions,
            conditioner.voice(task),
            plan,
            control=control,
            device=self._mesh.device,
            pause_s=deadlines.later_s / 4,
        )

    def _decoded(
        self, messages: Iterator[Message], plan: RolloutPlan, memory: PeakMemory, control: RunControl
    ) -> Iterator[FrameBlock]:
        """Yields whole frames on the output rank; other decoders hand it their strips.

        The last block waits a moment for the end of the messages, to tell what memory the video took.
        """
        mesh, vae = self._mesh, self._networks.vae
        assert vae is not None, "a decoder has the VAE"
        last: FrameBlock | None = None
        started = time.perf_counter()
        for position, video in decode(messages, vae, control):
            strip = to_pixels(video)
            if mesh.strips_to is not None:
                mesh.strips_to.send(Packet(kind=0, index=position.index, tensors=(strip,)))
                continue
            others = [source.receive(timeout_s=self._deadlines.later_s).tensors[0] for source in mesh.strips_from]
            frames = torch.cat([strip, *others], dim=2).cpu().numpy()
            block = FrameBlock(index=position.index, frames=frames, seconds=time.perf_counter() - started)
            if block.index == plan.timeline.num_blocks - 1:
                last = block
                continue
            yield block
            started = time.perf_counter()
        peak_bytes = memory.largest()
        if last is not None:
            yield replace(last, peak_bytes=peak_bytes)


def _sent(
    messages: Iterator[Message], receivers: Sequence[Sender], *, peak_bytes: Callable[[], int]
) -> Iterator[Message]:
    """Yields the messages, each handed to the receivers first; at the end tells them so, and what memory it took."""
    for message in messages:
        for receiver in receivers:
            receiver.send(packed(message))
        yield message
    last = end(peak_bytes())
    for receiver in receivers:
        receiver.send(last)


def _without_voice(message: Message) -> Message:
    return replace(message, voice=None) if isinstance(message, WorkingBlock) else message


def _plan(task: RenderTask) -> RolloutPlan:
    return RolloutPlan(
        size=task.size,
        timeline=task.timeline,
        schedule=euler_schedule(task.sample_steps),
        seed=task.seed,
        replace_reference=task.replace_reference,
        distance=drawn_distance(task.seed),
    )
