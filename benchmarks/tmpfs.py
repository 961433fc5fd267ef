"""Small disks that fill up: mounts of tmpfs, made and taken away."""

import errno
import os
import subprocess
from pathlib import Path
from types import TracebackType


class Tmpfs:
    """A small file system at `path`; needs the right to mount.

    Parameters
    ----------
    path : Path
        Made when missing.
    size : str
        As mount has it: `8m`.
    options : str
        More of them: `nr_inodes=200`.
    """

    def __init__(self, path: Path, size: str, options: str = "") -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        more = f",{options}" if options else ""
        _mount("-t", "tmpfs", "-o", f"size={size}{more}", "inscan-torture", str(path))

    def __enter__(self) -> "Tmpfs":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    def fill(self, leave: int = 0) -> None:
        """Take all the room there is, but `leave` bytes."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            room = os.fstatvfs(file.fileno())
            left = room.f_bavail * room.f_frsize - leave
            try:
                while left > 0:
                    left -= file.write(bytes(min(left, 1 << 16)))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def fill_inodes(self) -> int:
        """Take all the inodes there are; how many."""
        folder = self.path / "fillers"
        folder.mkdir(exist_ok=True)
        number = 0
        try:
            while True:
                (folder / str(number)).touch()
                number += 1
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        return number

    def free(self) -> None:
        """Give back what `fill` and `fill_inodes` took."""
        (self.path / "filler").unlink(missing_ok=True)
        for path in (self.path / "fillers").glob("*"):
            path.unlink()

    def read_only(self, now: bool) -> None:
        """Mount it read-only, or writable again. Read-only is refused while files are open for writing."""
        _mount("-o", "remount,ro" if now else "remount,rw", str(self.path))


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")
