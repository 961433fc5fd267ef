"""Check what `inscan demo --json` left: start Tiled again on its folder and resolve every uid it printed.

python .ci/check_demo.py OUT_DIR JSON_FILE
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tiled.client import from_uri

from inscan.service.tiled_server import EmbeddedTiled


def check(out: Path, answer: dict) -> list[str]:
    """Return what is wrong, in words."""
    wrong = []
    for name, least in (("report.html", 1_000), ("report.png", 50_000)):
        if not (out / name).is_file() or (out / name).stat().st_size < least:
            wrong.append(f"{name} is missing or empty")
    state = out / "state"
    server = EmbeddedTiled(state, readable=[state / "results", out / "data"])
    server.start()
    try:
        client = from_uri(server.uri, api_key=server.api_key.get_secret_value())
        raw, processed = client["raw"], client["processed"]
        for run in answer["runs"]:
            start = raw[run["uid"]].start
            if run["result_uid"] is None:
                wrong.append(f"run {run['uid']} has no result")
                continue
            derived = processed[run["result_uid"]]
            primary = derived["primary"]
            values, sigma = primary["values"].read(), primary["sigma"].read()
            if derived.start["raw_uid"] != run["uid"]:
                wrong.append(f"{run['result_uid']} does not name its raw run")
            if values.shape != sigma.shape or not np.isfinite(values).any():
                wrong.append(f"{run['result_uid']}: values {values.shape}, sigma {sigma.shape}")
            if not derived.start["provenance"]["weights_sha256"]:
                wrong.append(f"{run['result_uid']}: no weights in the provenance")
            if run["purpose"] == "fine":
                for key in ("parent_uid", "region", "rescan_proposal"):
                    if not start.get(key):
                        wrong.append(f"fine run {run['uid']} does not name its {key}")
        wrong += _composite(answer, processed)
    finally:
        server.stop()
    return wrong + list(answer["problems"])


def _composite(answer: dict, processed: Any) -> list[str]:
    """What is wrong with the composite of survey and fine maps."""
    fines = [run["uid"] for run in answer["runs"] if run["purpose"] == "fine"]
    made = answer["composite"]
    if not fines:
        return []
    if made is None:
        return ["there is no composite of survey and fine maps"]
    wrong = []
    found = {layer["uid"] for layer in made["layers"] if layer["found"]}
    if found != set(fines):
        wrong.append(f"{len(found)} of {len(fines)} fine maps were found in the survey")
    source = processed[made["result_uid"]]["primary"]["source"].read()
    if not {1, 3} <= set(np.unique(source)):
        wrong.append(f"composite: sources {np.unique(source)}, expected survey (1) and both (3)")
    return wrong


def main() -> int:
    """Print what is wrong; exit status 1 when there is something."""
    out, file = Path(sys.argv[1]), Path(sys.argv[2])
    answer = json.loads(file.read_text())
    wrong = check(out, answer)
    print("\n".join(wrong) or f"{len(answer['runs'])} runs resolve in Tiled, report present")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
