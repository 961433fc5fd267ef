"""Run every benchmark and keep what they measured in `docs/benchmarks.json`; `make bench` calls this.

Run it on an otherwise idle machine: absolute times move two- to threefold with the neighbours, ratios less.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs" / "benchmarks.json"
BENCHMARKS = (
    "runengine_cost",
    "plan_waiting",
    "assembly_cost",
    "ingest_large_map",
    "stop_to_result",
)


def main() -> None:
    """Run, print, write."""
    answers = {}
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), "--json"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        answers[name] = json.loads(done.stdout)
        print(json.dumps(answers[name], indent=1), flush=True)
        # After each: what was measured is kept when a later one fails.
        OUT.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
