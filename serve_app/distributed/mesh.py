"""Mesh: one rank's view of its gang. Only here ranks are computed with; all others speak of roles and peers.

Messages flow one way: the first rank of stage 0 copies them to its ulysses peers; each ulysses lane passes them from
stage to stage; every VAE rank listens to one lane of the last stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ray_cluster.program import Seat
from serve_app.distributed import rendezvous
from serve_app.distributed.channel import Peer, Receiver, Sender
from serve_app.distributed.traffic import Traffic
from serve_app.planning.layout import ParallelLayout, RankPlace, Role


@dataclass(frozen=True, eq=False)
class Axis:
    """Ranks that work on one thing together: their process group, their peers in order, and where this rank stands."""

    group: distributed.ProcessGroup
    peers: tuple[Peer, ...]
    index: int

    @property
    def size(self) -> int:
        return len(self.peers)


class Mesh:
    """The place of this rank, its neighbours, and the axes that it is on."""

    def __init__(
        self, layout: ParallelLayout, seat: Seat, *, store: TCPStore | None, meet_s: float, collective_s: float
    ) -> None:
        """Meets the other ranks; a gang of one has nobody to meet. Raises RankError.

        `store` is the meeting point where this rank opened it; `meet_s` bounds the meeting, `collective_s` every
        exchange after it.
        """
        assert seat.num_ranks == layout.world_size, f"{seat.num_ranks} ranks for {layout}"
        self.layout = layout
        self.place: RankPlace = layout.place(seat.rank)
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.traffic = Traffic()
        self._timeout_s = collective_s
        self.ulysses: Axis | None = None
        self.decoders: Axis | None = None
        self.shards: Axis | None = None
        if layout.world_size > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            rendezvous.join(seat, own_store=store, timeout_s=meet_s)
            with rendezvous.explained(seat, meet_s):
                self._open_axes()
                self._open_links()

    def _open_axes(self) -> None:
        """Opens the groups; every rank opens all of them, in the same order, as torch demands."""
        layout = self.layout
        for stage in range(layout.stages):
            first = layout.stage_rank(stage=stage, ulysses=0)
            axis = self._axis(range(first, first + layout.ulysses))
            self.ulysses = axis or self.ulysses
        # Groups of their own, for exchanges of one group wait for each other: weights must not hold up attention.
        self.shards = self._axis(range(layout.ulysses)) if layout.weight_shards > 1 else None
        last_stage = layout.place(layout.decoding_ranks[0]).role is Role.STAGE
        own = self._axis(layout.decoding_ranks) if not last_stage else None
        self.decoders = self.ulysses if last_stage and self.is_decoder else own

    def _open_links(self) -> None:
        """Sends one number over every link, in the same order on all ranks.

        NCCL connects two ranks at their first message and holds up both until it is done. Later that could be for
        ever: the last stage sends the reference back long before the others ask for it.
        """
        number = torch.zeros(1, device=self.device)
        for source, target in self._links():
            if self.place.rank == source:
                distributed.send(number, dst=target)
            elif self.place.rank == target:
                distributed.recv(number, src=source)

    def _links(self) -> list[tuple[int, int]]:
        """Returns every pair of ranks of which the first ever sends messages to the second."""
        layout = self.layout
        places = layout.places()
        forward = [(upstream, place.rank) for place in places if (upstream := self._upstream_of(place)) is not None]
        lanes = range(layout.ulysses)
        back = [
            (layout.stage_rank(stage=layout.stages - 1, ulysses=lane), layout.stage_rank(stage=stage, ulysses=lane))
            for stage in range(layout.stages - 1)
            for lane in lanes
        ]
        output, *others = layout.decoding_ranks
        return [*forward, *back, *((other, output) for other in others)]

    def _axis(self, ranks: range) -> Axis | None:
        """Returns the axis over `ranks` when this rank is on it; one rank alone is no axis."""
        if len(ranks) == 1:
            return None
        group = distributed.new_group(list(ranks), timeout=timedelta(seconds=self._timeout_s))
        if self.place.rank not in ranks:
            return None
        return Axis(group, tuple(self._peer(rank) for rank in ranks), ranks.index(self.place.rank))

    @property
    def is_source(self) -> bool:
        """Whether this rank makes the conditions, draws the noise and decides when a video ends."""
        return self.place.rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.place.role is Role.STAGE and self.place.stage == self.layout.stages - 1

    @property
    def is_decoder(self) -> bool:
        return self.place.rank in self.layout.decoding_ranks

    @property
    def is_output(self) -> bool:
        """Whether this rank hands out the finished frames: the first of the decoders."""
        return self.place.rank == self.layout.decoding_ranks[0]

    @cached_property
    def upstream(self) -> Receiver | None:
        """Where messages come from; None on the source."""
        rank = self._upstream_of(self.place)
        return None if rank is None else Receiver(self._peer(rank), device=self.device)

    @cached_property
    def copies(self) -> tuple[Sender, ...]:
        """To whom the source hands every message before it works on it."""
        return self._senders(lambda other: other.role is Role.STAGE and other.stage == 0)

    @cached_property
    def downstream(self) -> tuple[Sender, ...]:
        """To whom every message goes after this rank's work on it."""
        return self._senders(lambda other: other.role is Role.VAE or other.stage != 0)

    @cached_property
    def earlier_stages(self) -> tuple[Sender, ...]:
        """On the last stage: the same lane of all other stages.

        What flows back must be on the CPU, and so goes by gloo: NCCL orders all messages of two ranks, and one that
        is taken only clips later would hold up the latents of the blocks between.
        """
        if not self.is_last_stage:
            return ()
        lane = [self.layout.stage_rank(stage=stage, ulysses=self.place.ulysses) for stage in range(self.place.stage)]
        return tuple(self._sender(rank) for rank in lane)

    @cached_property
    def last_stage(self) -> Receiver | None:
        """On the other stages: the same lane of the last one. Its messages come to the CPU: see `earlier_stages`."""
        if self.place.role is not Role.STAGE or self.is_last_stage:
            return None
        rank = self.layout.stage_rank(stage=self.layout.stages - 1, ulysses=self.place.ulysses)
        return Receiver(self._peer(rank), device=torch.device("cpu"))

    @cached_property
    def strips_from(self) -> tuple[Receiver, ...]:
        """On the output rank: the other decoders, in the order of their strips."""
        if self.decoders is None or not self.is_output:
            return ()
        return tuple(Receiver(peer, device=self.device) for peer in self.decoders.peers[1:])

    @cached_property
    def strips_to(self) -> Sender | None:
        """On the other decoders: the output rank."""
        if self.decoders is None or self.is_output:
            return None
        return self._sender(self.decoders.peers[0].rank)

    def flush(self) -> None:
        """Waits until every message of this rank has left."""
        to_output = [] if self.strips_to is None else [self.strips_to]
        for sender in [*self.copies, *self.downstream, *self.earlier_stages, *to_output]:
            sender.flush()

    def close(self) -> None:
        """Leaves the gang."""
        rendezvous.leave()

    def _upstream_of(self, place: RankPlace) -> int | None:
        if place.role is Role.VAE:
            return self.layout.stage_rank(stage=self.layout.stages - 1, ulysses=place.vae % self.layout.ulysses)
        if place.stage:
            return self.layout.stage_rank(stage=place.stage - 1, ulysses=place.ulysses)
        return 0 if place.ulysses else None

    def _senders(self, is_wanted: Callable[[RankPlace], bool]) -> tuple[Sender, ...]:
        """Returns senders to those of the wanted ranks whose upstream is this rank."""
        wanted = [place for place in self.layout.places() if is_wanted(place)]
        return tuple(self._sender(place.rank) for place in wanted if self._upstream_of(place) == self.place.rank)

    def _sender(self, rank: int) -> Sender:
        return Sender(self._peer(rank), timeout_s=self._timeout_s, traffic=self.traffic)

    def _peer(self, rank: int) -> Peer:
        return Peer(rank, str(self.layout.place(rank)))
