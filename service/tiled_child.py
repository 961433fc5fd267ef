"""The embedded Tiled server's process: `python -m inscan.service.tiled_child CONFIG FD PARENT`.

It serves what `tiled serve config CONFIG` serves, with three differences: the catalog is prepared in this process
(Tiled's own way starts a second interpreter, 3 s); it listens on a socket that its parent has already bound, so that
no port can be lost between two processes; and it never prints the address with the key in it.
"""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from inscan.service.children import die_with_parent

_SHUTDOWN_S = 5
"""Open requests may take so long after SIGTERM."""
_KEEP_ALIVE_S = 75
"""Idle connections live longer than the pauses between two results, or each would pay for a new one."""


def prepare_catalog(path: Path) -> None:
    """Create an empty catalog database at `path` unless it exists; never leaves half of one."""
    if path.exists():
        return
    from sqlalchemy.ext.asyncio import create_async_engine
    from tiled.alembic_utils import stamp_head
    from tiled.catalog.alembic_constants import ALEMBIC_DIR, ALEMBIC_INI_TEMPLATE_PATH
    from tiled.catalog.core import initialize_database

    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    uri = f"sqlite+aiosqlite:///{fresh}"

    async def create() -> None:
        engine = create_async_engine(uri)
        await initialize_database(engine)
        await engine.dispose()

    asyncio.run(create())
    stamp_head(Path(ALEMBIC_INI_TEMPLATE_PATH), Path(ALEMBIC_DIR), uri)
    os.replace(fresh, path)


def main() -> None:
    config_path, descriptor, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # It has tables to close, so it is asked and not killed.
    die_with_parent(parent, signal.SIGTERM)
    listener = socket.socket(fileno=descriptor)

    import uvicorn
    from tiled.config import parse_configs
    from tiled.server.app import build_app_from_config

    prepare_catalog(config_path.parent / "catalog.db")
    app = build_app_from_config(parse_configs(config_path))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            # Requests may carry the key in their address; Tiled's own log of them would keep it.
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
    )
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
