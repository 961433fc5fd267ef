"""The real service with a small recipe: `python small_service.py SETTINGS RECIPE`."""

import logging
import sys
from pathlib import Path

from inscan.service.serve import serve
from inscan.service.settings import load_settings


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    recipes = str(Path(__file__).with_name("small_recipes.py"))
    try:
        settings = load_settings(Path(sys.argv[1]))
        sys.exit(serve(settings, worker_command=(sys.executable, recipes, sys.argv[2])))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot start: {error}")


if __name__ == "__main__":
    main()
