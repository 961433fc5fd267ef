"""`inscan serve` with the faulty worker: `python faulty_service.py SETTINGS PARENT`. Ends with its parent."""

import logging
import sys
from pathlib import Path

from inscan.service.children import die_with_parent
from inscan.service.serve import serve
from inscan.service.settings import load_settings


def main() -> None:
    settings, parent = Path(sys.argv[1]), int(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    die_with_parent(parent)
    worker = str(Path(__file__).with_name("faulty_worker.py"))
    try:
        sys.exit(serve(load_settings(settings), worker_command=(sys.executable, worker)))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot start: {error}")


if __name__ == "__main__":
    main()
