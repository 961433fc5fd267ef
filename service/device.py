"""What a worker computes on: chosen before torch is loaded, described after."""

import errno
import os

import psutil

_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
    "can't start new thread",
)
"""How torch, CUDA's libraries and Python say it where they raise a bare RuntimeError."""


def choose(device: str | None, threads: int | None) -> None:
    """Fix device and thread count for this process, before torch is first imported.

    Models take CUDA when they see it; so what they may not use is hidden from them.

    Parameters
    ----------
    device : str or None
        `cpu`, `cuda` or `cuda:N`; None for CUDA where there is one.
    threads : int or None
        Threads of the numerical libraries; None for all cores this process may use.

    Raises
    ------
    ValueError
        For any other device.
    """
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device is not None and device.startswith("cuda:") and device[5:].isdigit():
        os.environ["CUDA_VISIBLE_DEVICES"] = device[5:]
    elif device not in (None, "cuda"):
        raise ValueError(f"device {device!r}: expected cpu, cuda or cuda:N")
    count = threads or len(os.sched_getaffinity(0))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)


def warm_up(device: str | None) -> str:
    """Load torch and run it once, so that the first job does not pay for it.

    Returns
    -------
    str
        What will be computed on, for people: `cuda: NVIDIA H200` or `cpu: 8 threads`.

    Raises
    ------
    RuntimeError
        When CUDA was asked for and there is none.
    """
    import torch

    count = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(count)
    cuda = torch.cuda.is_available()
    if device is not None and device.startswith("cuda") and not cuda:
        raise RuntimeError(
            f"device {device!r} asked for, but torch {torch.__version__} finds no CUDA device"
        )
    image = torch.zeros(1, 8, 32, 32, device="cuda" if cuda else "cpu")
    torch.nn.functional.conv2d(image, torch.zeros(8, 8, 3, 3, device=image.device))
    return f"cuda: {torch.cuda.get_device_name(0)}" if cuda else f"cpu: {count} threads"


def memory() -> int:
    """Memory of this machine in bytes."""
    return psutil.virtual_memory().total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the CPU or the GPU, ran out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # a file that could not be mapped
    # torch's own class cannot be named without loading torch, and on a CPU it raises a bare
    # RuntimeError.
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(words in text for words in _WORDS)
    )
