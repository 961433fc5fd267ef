import errno
import os

import pytest

from inscan.service import device


@pytest.mark.parametrize(
    ("name", "visible"), [("cpu", ""), ("cuda:1", "1"), ("cuda", "unset"), (None, "unset")]
)
def test_models_see_only_what_they_may_use(monkeypatch, name, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "unset")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(variable, "unset")
    device.choose(name, 3)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", ""])
def test_a_device_that_does_not_exist_is_refused(monkeypatch, name):
    with pytest.raises(ValueError, match="expected cpu, cuda or cuda:N"):
        device.choose(name, 1)


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 3 TB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_failures(error, is_one):
    assert device.is_out_of_memory(error) is is_one
