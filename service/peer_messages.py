"""What broker and worker of different versions make of each other: majors must agree, minors only add."""

from collections.abc import Mapping
from typing import Any, TypeVar

from inscan.callbacks import wire
from inscan.callbacks.link import host_id
from inscan.service.messages import PROTOCOL, Hello, InferenceJob, Strict, Welcome
from inscan.service.settings import Settings

_Message = TypeVar("_Message", bound=Strict)


def read(kind: type[_Message], content: Mapping[str, Any], minor: int) -> _Message:
    """Check a message of a peer that speaks a minor version: what a newer one says beyond ours is left out.

    Raises
    ------
    ValidationError
        When it makes no sense, or one of our version or an older one says what we do not know.
    """
    known = kind.model_fields
    if minor > PROTOCOL[1]:
        content = {name: value for name, value in content.items() if name in known}
    return kind.model_validate(content)


def read_hello(content: Mapping[str, Any]) -> Hello:
    """Check the first message of a worker, which says what it speaks."""
    spoken = content.get("protocol")
    newer = (
        isinstance(spoken, list | tuple)
        and len(spoken) == 2
        and isinstance(spoken[1], int)
        and spoken[1] > PROTOCOL[1]
    )
    return read(Hello, content, PROTOCOL[1] + 1 if newer else PROTOCOL[1])


def job_content(job: InferenceJob, minor: int) -> bytes:
    """A job for a worker: one of an older version is not told of what it may not know, where it says nothing."""
    older = minor < PROTOCOL[1]
    return wire.pack(job.model_dump(mode="json", exclude_defaults=older))


def other_major(hello: Hello, version: str) -> str:
    """Why a worker is refused; empty when it is not."""
    if hello.protocol[0] == PROTOCOL[0]:
        return ""
    return (
        f"this worker is inscan {hello.version}, broker protocol {hello.protocol[0]}; the service is {version}, "
        f"protocol {PROTOCOL[0]}: install the same version on both"
    )


def welcome(settings: Settings, version: str, spool_address: str) -> Welcome:
    """The answer to a worker that is taken in."""
    return Welcome(
        protocol=PROTOCOL,
        version=version,
        host_id=host_id(),
        hb_s=settings.hb_s,
        lease_s=settings.lease_s,
        spool=spool_address,
    )
