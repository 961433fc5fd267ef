"""What crosses the wire between broker and workers, and what the journal keeps: strict, frozen,
versioned."""

import hashlib
import json
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PROTOCOL = (1, 1)
"""Major and minor of the broker protocol: majors must agree, minors only add."""

NAMESPACE = uuid.UUID("5ce0a4b6-6b0a-5d0c-9a3b-6f2d3a1f7e10")
"""Namespace of the uids of derived runs; never to be changed, or a repeated commit would make a
second run."""

MAX_ARRAY_BYTES = 1 << 38
"""No array of a job may claim more (256 GiB): refused before anything is allocated."""

Recipe = Literal["n2n", "subspace", "superres", "spectral", "composite"]
Kind = Literal["snapshot", "final"]


class Strict(BaseModel):
    """Base of all messages: unknown keys are errors, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)


class ArraySpec(Strict):
    """One array of a spool folder: `file` is a plain file name inside it, never a path."""

    file: str = Field(pattern=r"^[A-Za-z0-9_@.-]{1,120}\.npy$")
    shape: tuple[int, ...]
    dtype: str = Field(pattern=r"^[<>|=]?[biuf][0-9]{1,2}$")
    nbytes: int = Field(ge=0, le=MAX_ARRAY_BYTES)

    @model_validator(mode="after")
    def _consistent(self) -> "ArraySpec":
        # The size is settled here, from numbers alone, so that nobody allocates on a claim that
        # does not add up.
        count = 1
        for length in self.shape:
            if length < 0:
                raise ValueError(f"{self.file}: negative length in shape {self.shape}")
            count *= length
        itemsize = int(self.dtype.lstrip("<>|=")[1:])
        if count * itemsize != self.nbytes:
            raise ValueError(
                f"{self.file}: shape {self.shape} of {self.dtype} is {count * itemsize} bytes, "
                f"the message says {self.nbytes}"
            )
        return self


class InferenceJob(Strict):
    """One method to run on one assembled run.

    Attributes
    ----------
    key : str
        What makes two requests the same one: see `job_key`.
    meta : dict
        What the assembler knows of the run: elements or energies, geometry, units, how far it got.
    spool : str
        Folder of the arrays on the machine `host_id`.
    input_digest : str
        Digest of the arrays (`inscan.service.digest`); empty until the spool is synced, and for
        snapshots.
    result_path : str
        Where the result file goes on `host_id`.
    refines : str
        Key of the job whose result this one is to supersede; empty for a first result. It waits
        while first results of other runs do.
    fence : int
        Rises with each dispatch of the key, so that an old worker cannot be taken for the present
        one.
    """

    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    run_uid: str = Field(min_length=1, max_length=200)
    stream: str = Field(max_length=200)
    kind: Kind
    recipe: Recipe
    parameters: dict[str, Any]
    meta: dict[str, Any]
    spool: str
    arrays: dict[str, ArraySpec]
    input_digest: str
    result_path: str
    refines: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    fence: int = Field(default=0, ge=0)
    host_id: str

    @property
    def granted_s(self) -> float:
        """Seconds that the request itself grants to fine-tuning, beyond what a recipe may take."""
        return float(self.parameters.get("fit_seconds") or 0.0)


class InferenceResult(Strict):
    """What a worker made of a job.

    Attributes
    ----------
    digest : str
        Digest of the result's arrays; two results of one key are compared by it.
    report : dict
        Method, weights, figures, verdict (`pass`, `warn`, `block`) with its reasons.
    regions : list of dict
        Pixel boxes worth a closer look, best first.
    timings : dict
        Seconds: `queued` (submit to dispatch), `mapped`, `inference`, `written`, `synced`, `sent`.
    """

    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    fence: int = Field(ge=0)
    result_path: str
    digest: str
    report: dict[str, Any]
    regions: list[dict[str, Any]]
    timings: dict[str, float]


class Hello(Strict):
    """A worker presents itself."""

    protocol: tuple[int, int]
    worker: str = Field(min_length=1, max_length=200)
    host_id: str = Field(max_length=200)
    boot_id: str = Field(max_length=200)
    pid: int
    device: str = Field(max_length=200)
    memory: int
    version: str = Field(max_length=100)
    credit: int = Field(ge=0, le=1)


class Welcome(Strict):
    """The broker's answer: how often to beat, how long a lease lasts, where the spool server
    listens."""

    protocol: tuple[int, int]
    version: str
    host_id: str
    hb_s: float = Field(gt=0, le=3600, allow_inf_nan=False)
    lease_s: float = Field(gt=0, le=86400, allow_inf_nan=False)
    spool: str


class Heartbeat(Strict):
    """A worker lives; with a job, how far it is (0 to 1), how often it said so (`steps`, by which a
    job that hangs is told from one that works), and the resident memory in bytes."""

    worker: str = Field(min_length=1, max_length=200)
    key: str | None
    fence: int
    progress: float
    steps: int
    rss: int
    credit: int = Field(ge=0, le=1)


class Partial(Strict):
    """A job moved on, told between heartbeats."""

    key: str
    fence: int
    progress: float
    steps: int


class Fail(Strict):
    """A job failed; `retryable` says whether another try could end otherwise."""

    key: str
    fence: int
    code: str = Field(max_length=100)
    message: str = Field(max_length=4000)
    retryable: bool


class Ticket(Strict):
    """One dispatch of one job: header of JOB, ACK and CANCEL."""

    key: str
    fence: int
    reason: str = ""


class Notice(Strict):
    """DRAIN, BYE and ERR: a code for programs and a sentence for people."""

    code: str = Field(default="", max_length=100)
    message: str = Field(default="", max_length=4000)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same text for the same value, whoever wrote it.

    Raises
    ------
    ValueError
        For NaN and infinities, which JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def job_key(
    run_uid: str,
    stream: str,
    recipe: str,
    parameters: dict[str, Any],
    *,
    snapshot: int | None = None,
) -> str:
    """Name a request by its content: SHA-256, 64 hexadecimal digits.

    Parameters
    ----------
    parameters : dict
        As requested, so that the key is known before anything is computed.
    snapshot : int or None
        Rows (energies) done, for a snapshot; None for the final.
    """
    parts: list[Any] = [run_uid, stream, recipe, parameters]
    if snapshot is not None:
        parts.append({"snapshot": snapshot})
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def derived_uid(key: str) -> str:
    """Uid of the derived run of a final: follows from the key, so that a second commit meets the
    first."""
    return str(uuid.uuid5(NAMESPACE, key))
