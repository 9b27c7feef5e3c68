"""What to do when a machine fails: from the text of a failure, as libraries print it, to a remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """A failure that users meet; `signs` is a pattern of what is printed then, in any case of letters."""

    cause: str
    signs: str
    remedy: str


# The first that fits counts: the particular before the general.
TROUBLES = (
    Trouble(
        "GPU memory held by another process",
        r"CUDA out of memory.*\bProcess \d+ has \S+ [GM]iB memory in use",
        "end the other process (`live-avatar doctor` names those that hold GPU memory; after a crash they may be left "
        "over from the last run), then try again",
    ),
    Trouble(
        "GPU memory",
        r"CUDA out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED"
        r"|Cuda failure.{0,10}out of memory",
        "use a smaller --size (640*384, 384*256), --infer-frames 36 or 24, or more or larger GPUs; "
        "--num-clip does not change GPU memory",
    ),
    Trouble(
        "shared memory",
        r"shared memory segment|/dev/shm\S* .*No space left on device|No space left on device.*/dev/shm"
        r"|out of shared memory|shared memory limit|Bus error|SIGBUS|signal 7\b|exit ?code *:? *-7\b",
        "give the container more shared memory: docker run --shm-size=8g, on Kubernetes an emptyDir of medium Memory "
        "at /dev/shm",
    ),
    Trouble(
        "disk",
        r"No space left on device|Disk quota exceeded|\[Errno 28\]",
        "free space in the folders of results, cache and temporary files; `live-avatar doctor` shows how much each has",
    ),
    Trouble(
        "port in use",
        r"EADDRINUSE|address already in use|\[Errno 98\]|port \d+ is (already )?(in use|not available)",
        "find who listens (ss -ltnp), end it when it is left over from the last run, or choose another port",
    ),
    Trouble(
        "driver",
        r"driver version is insufficient|driver on your system is too old|driver/library version mismatch"
        r"|no kernel image is available",
        "install a newer NVIDIA driver and restart the machine, or the build of torch that is made for this driver and "
        "GPU; `live-avatar doctor` compares them",
    ),
    Trouble(
        "a GPU that failed",
        r"GPU is lost|fallen off the bus|uncorrectable ECC|NVRM: Xid",
        "restart the machine; when it happens again, the card, its power or its cooling is at fault",
    ),
    Trouble(
        "collective time-out",
        r"Watchdog caught collective operation timeout|Timed out waiting \d+ms for (recv|send) operation"
        r"|collective.{0,40}timed? ?out",
        "one GPU process hangs or died, the others wait for it: look at the first failure in the log, end all "
        "processes of the run and start again; a longer time-out helps only when the first run compiles",
    ),
    Trouble(
        "host name",
        r"Unable to resolve hostname|Unable to find address for|connectFullMesh|network addresses of .* cannot be "
        r"retrieved|gai error|name or service not known|Temporary failure in name resolution|getaddrinfo"
        r"|unsupported gloo device",
        "let the host's name resolve to one of its addresses (a line in /etc/hosts), or name the network interface: "
        "GLOO_SOCKET_IFNAME=eth0 (`ip -br addr` lists them)",
    ),
    Trouble(
        "rendezvous",
        r"client socket has timed out|waiting for clients\. \d+/\d+ clients joined|wait timeout after \d+ms"
        r"|failed to connect/validate|RendezvousTimeout",
        "not all processes of the run met: look for the one that failed first, and let the machines reach each other's "
        "ports (firewall, NetworkPolicy)",
    ),
    Trouble(
        "NCCL",
        r"unhandled system error|unhandled cuda error|ncclSystemError|ncclUnhandledCudaError|ncclInternalError"
        r"|ncclRemoteError|NCCL error|NCCL WARN",
        "set NCCL_DEBUG=INFO and read its last lines; try NCCL_P2P_DISABLE=1 (cards without NVLink), "
        "NCCL_SOCKET_IFNAME=eth0 (the interface to use), more /dev/shm, and look for a port in use",
    ),
    Trouble(
        "memory of the host",
        r"OOM killer|node (is |was |running )*low on memory|ray\.exceptions\.OutOfMemoryError|SIGKILL|signal 9\b"
        r"|exit ?code *:? *(-9|137)\b|OOMKilled|Cannot allocate memory",
        "the machine or the container ran out of its own memory, or somebody killed the process: give it more memory, "
        "or run fewer processes beside it (dmesg names what the kernel killed)",
    ),
    Trouble(
        "a process of the run died",
        r"Connection closed by peer|Connection reset by peer|ActorDiedError|WorkerCrashedError",
        "the failure is another process's: look at its log, the first failure is the cause; then start again",
    ),
)

_AS_PRINTED = re.IGNORECASE | re.DOTALL


def remedy_for(failure_text: str) -> str | None:
    """Returns what to do about a failure, or None when its text is not known."""
    return next((trouble.remedy for trouble in TROUBLES if re.search(trouble.signs, failure_text, _AS_PRINTED)), None)
