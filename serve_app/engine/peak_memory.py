"""How much memory a video takes: the most that any of its ranks had allocated."""

from __future__ import annotations

import resource

import torch
from torch import distributed

from serve_app.distributed.mesh import Mesh
from serve_app.planning.layout import Role


class PeakMemory:
    """That of one video; a rank tells its figure to those behind it when its messages end."""

    def __init__(self, mesh: Mesh) -> None:
        """Begins to measure."""
        self._mesh = mesh
        self._heard_bytes = 0
        reset_peak(mesh.device)

    def hear(self, num_bytes: int) -> None:
        """Takes the figure of the ranks before this one."""
        self._heard_bytes = num_bytes

    def largest(self) -> int:
        """Returns the most bytes of this rank, of those on its axis and of all before them.

        The ranks of an axis ask together, once, when their work is done.
        """
        largest = max(peak_bytes(self._mesh.device), self._heard_bytes)
        axis = self._mesh.ulysses if self._mesh.place.role is Role.STAGE else self._mesh.decoders
        if axis is None:
            return largest
        agreed = torch.tensor(largest)  # on the CPU, whatever the ranks compute on
        distributed.all_reduce(agreed, op=distributed.ReduceOp.MAX, group=axis.group)
        return int(agreed)


def reset_peak(device: torch.device) -> None:
    """Forgets what was allocated before; on the CPU there is nothing that forgets."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Returns the most that was allocated on the GPU; on the CPU the most that this process ever held in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
