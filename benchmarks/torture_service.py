"""`inscan serve` with the light worker: `python torture_service.py SETTINGS PARENT PAUSE`. Ends with its parent."""

import logging
import sys
from pathlib import Path

from inscan.service.children import die_with_parent
from inscan.service.serve import serve
from inscan.service.settings import load_settings


def main() -> None:
    settings, parent, pause = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    die_with_parent(parent)
    worker = str(Path(__file__).with_name("torture_worker.py"))
    command = None if pause == "real" else (sys.executable, worker, "--pause", pause)
    try:
        sys.exit(serve(load_settings(settings), worker_command=command))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot start: {error}")


if __name__ == "__main__":
    main()
