"""Texts of failures, as the libraries print them, are known and lead to the remedy of their cause."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch.distributed as dist

from serve_app.troubleshooting import TROUBLES, remedy_for

PRINTED = {
    "GPU memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.58 GiB. GPU 0 has a total capacity of 23.64 "
        "GiB of which 1.20 GiB is free. Including non-PyTorch memory, this process has 22.43 GiB memory in use. Of the "
        "allocated memory 21.90 GiB is allocated by PyTorch, and 89.44 MiB is reserved by PyTorch but unallocated.",
        "RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Failed to CUDA calloc async 4 bytes\nCuda failure 2 'out of memory'",
    ],
    "GPU memory held by another process": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 "
        "GiB of which 512.00 MiB is free. Process 31415 has 18.20 GiB memory in use. Including non-PyTorch memory, "
        "this process has 4.43 GiB memory in use.",
    ],
    "shared memory": [
        "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, "
        "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclSystemError: System "
        "call (e.g. socket, malloc) or external library call failed or device error. \nLast error:\nError while "
        "creating shared memory segment /dev/shm/nccl-MUGtXJ (size 9637888), error: No space left on device (28)",
        "OSError: [Errno 28] No space left on device: '/dev/shm/torch_123'",
        "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's "
        "workers are out of shared memory. Please try to raise your shared memory limit.",
        "Bus error (core dumped)",
        "exitcode  : -7 (pid: 1234)",
    ],
    "disk": [
        "OSError: [Errno 28] No space left on device: 'outputs/videos/task_001.mp4'",
        "OSError: [Errno 122] Disk quota exceeded",
    ],
    "port in use": [
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
        "port: 29103, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
        "OSError: [Errno 98] Address already in use",
        "[Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
    ],
    "driver": [
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
        "driver by downloading and installing a new version",
        "CUDA driver version is insufficient for CUDA runtime version",
        "Failed to initialize NVML: Driver/library version mismatch",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    ],
    "a GPU that failed": [
        "pynvml.NVMLError_GpuIsLost: GPU is lost",
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=4711, GPU has fallen off the bus.",
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
    ],
    "collective time-out": [
        "[rank1]:[E1121 10:00:00.000000000 ProcessGroupNCCL.cpp:685] [Rank 1] Watchdog caught collective operation "
        "timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600026 "
        "milliseconds before timing out.",
        "RuntimeError: [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out "
        "waiting 2000ms for recv operation to complete",
    ],
    "host name": [
        "RuntimeError: [enforce fail at /__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/device.cc:84] ifa != "
        "nullptr. Unable to find address for: eth7",
        "[W ProcessGroupGloo.cpp:757] Warning: Unable to resolve hostname to a (local) address. Using the loopback "
        "address as fallback. Manually set the network interface to bind to with GLOO_SOCKET_IFNAME.",
        "RuntimeError: Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] no error",
        "[W1121 04:19:29.600959153 socket.cpp:764] [c10d] The IPv6 network addresses of (gpu-7, 29107) cannot be "
        "retrieved (gai error: -2 - Name or service not known).",
        "socket.gaierror: [Errno -3] Temporary failure in name resolution",
    ],
    "rendezvous": [
        "torch.distributed.DistStoreError: wait timeout after 300000ms, keys: /default_pg/0//cpu//0/0",
        "torch.distributed.DistNetworkError: The client socket has timed out after 300000ms while trying to connect to "
        "(10.0.0.4, 29500).",
    ],
    "NCCL": [
        "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/"
        "ProcessGroupNCCL.cpp:3690, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5"
        "\nncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. ",
        "ncclUnhandledCudaError: Call to CUDA function failed.",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
    ],
    "memory of the host": [
        "The worker died unexpectedly. Worker unexpectedly exits with a connection error code 2. End of file. Some "
        "common causes include: (1) the process was killed by the OOM killer due to high memory usage. (2) ray stop "
        "--force was called. (3) The worker crashed unexpectedly due to SIGSEGV or other unexpected errors.",
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        "traceback : Signal 9 (SIGKILL) received by PID 4242",
        "exitcode  : -9 (pid: 4242)",
        "Last State: Terminated, Reason: OOMKilled",
    ],
    "a process of the run died": [
        "RuntimeError: [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by "
        "peer [127.0.0.1]:5801. This is typically caused by a remote worker crashing. Check the logs of the remote "
        "worker before reporting an error.",
    ],
}
REMEDIES = {trouble.cause: trouble.remedy for trouble in TROUBLES}


@pytest.mark.parametrize(
    ("cause", "text"), [(cause, text) for cause, texts in PRINTED.items() for text in texts], ids=lambda part: part[:30]
)
def test_a_printed_failure_leads_to_the_remedy_of_its_cause(cause: str, text: str) -> None:
    assert remedy_for(text) == REMEDIES[cause]


def test_every_trouble_is_shown_by_a_printed_failure() -> None:
    assert set(PRINTED) == set(REMEDIES)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ValueError: size 700x300 is not a multiple of 64",
        "KeyError: 'image'",
        "CancelledError",
        "TypeError: unsupported operand",
        "exit code: 2",
        "exit code: 90",
        "requests.exceptions.ConnectionError: Connection refused",
    ],
)
def test_what_is_not_known_has_no_remedy(text: str) -> None:
    assert remedy_for(text) is None


def test_a_port_in_use_is_known_as_this_torch_prints_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(dist.DistNetworkError) as failure:
        dist.TCPStore("127.0.0.1", taken.getsockname()[1], 1, is_master=True, timeout=timedelta(seconds=1))
    assert remedy_for(str(failure.value)) == REMEDIES["port in use"]


def test_a_late_key_is_known_as_this_torch_prints_it() -> None:
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    store.set_timeout(timedelta(milliseconds=1))
    with pytest.raises(dist.DistStoreError) as failure:
        store.get("never set")
    assert remedy_for(str(failure.value)) == REMEDIES["rendezvous"]
