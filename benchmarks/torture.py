"""Break everything that can be broken and count what is lost: `make torture`. An hour or two, on an idle machine.

Each part writes `docs/reliability/<part>.json`; `reliability_page.py` makes the tables of docs/reliability.md of them.
A small share of every part with a fixed seed is among the tests.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ("kills", "network", "fuzz", "tiled", "resources", "documents", "scan", "soak")


def main() -> int:
    """Run the parts named on the command line, or all; the exit status is 1 when one lost something."""
    wanted = sys.argv[1:] or PARTS
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    bad = []
    for part in wanted:
        print(f"== {part}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"torture_{part}.py")]).returncode:
            bad.append(part)
    subprocess.run([sys.executable, str(HERE / "reliability_page.py")], check=True)
    if bad:
        print(f"not as promised: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
