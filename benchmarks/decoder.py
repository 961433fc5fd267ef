"""What a decoder is to those who fuzz it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Decoder:
    """One thing that reads bytes of others.

    Attributes
    ----------
    name : str
    seeds : sequence of bytes
        What is valid, to be spoiled.
    decode : callable
        Reads bytes; writes them into a file first where it reads files.
    raises : tuple of exceptions
        What it is documented to raise; anything else is a defect.
    """

    name: str
    seeds: Sequence[bytes]
    decode: Callable[[bytes], object]
    raises: tuple[type[Exception], ...]


def in_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A decoder of bytes, from what reads a file."""

    def decode(data: bytes) -> object:
        path.write_bytes(data)
        path.chmod(0o600)
        return read(path)

    return decode
