"""Hold the pinned dependencies (constraints.txt) against the known vulnerabilities, with pip-audit.

    python docker/audit.py [PIP_AUDIT]      PIP_AUDIT: the program; by default the one on the path

Exit status 0 when nothing is known, or when nobody could be asked, which is said; 1 for a vulnerability that
`audit-reviewed.yaml` does not name with a reason and a date until which that holds.
"""

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
PINNED = HERE.parent / "constraints.txt"
REVIEWED = HERE / "audit-reviewed.yaml"
_TIMEOUT_S = 60


def judge(answer: Any, reviewed: dict[str, Any], today: datetime.date) -> tuple[bool, list[str]]:
    """Return whether all is well with what pip-audit found, and what to say."""
    rows = answer["dependencies"]
    audited = [row for row in rows if "skip_reason" not in row]
    if not audited:
        return True, ["nothing was audited: the index knows none of our dependencies' records"]
    said, good = [f"{len(audited)} of {len(rows)} dependencies were audited"], True
    for row in audited:
        for found in row.get("vulns", ()):
            names = [found["id"], *found.get("aliases", ())]
            known = next((reviewed[name] for name in names if name in reviewed), None)
            what = f"{row['name']} {row['version']}: {found['id']}"
            if known is not None and known["until"] >= today:
                said.append(f"{what}: reviewed until {known['until']}: {known['reason']}")
                continue
            good = False
            fixed = ", ".join(found.get("fix_versions", ())) or "no version yet"
            said.append(f"{what}, fixed in {fixed}: raise it in constraints.txt, or review it")
    return good, said


def _asked(program: str) -> tuple[Any, str]:
    """What pip-audit answers, or None and why."""
    command = [
        program, "--requirement", str(PINNED), "--no-deps", "--disable-pip", "--format", "json",
        "--progress-spinner", "off",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_TIMEOUT_S} s"
    try:
        return json.loads(done.stdout), ""
    except ValueError:
        return None, (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]


def main() -> int:
    beside = Path(sys.executable).with_name("pip-audit")
    program = sys.argv[1] if len(sys.argv) > 1 else shutil.which("pip-audit")
    program = str(beside) if program is None and beside.exists() else program
    if program is None:
        print("dependencies were not audited: there is no pip-audit (pip install pip-audit)")
        return 0
    answer, why = _asked(program)
    if answer is None:
        print(f"dependencies were not audited: the vulnerability service cannot be reached ({why})")
        return 0
    reviewed = yaml.safe_load(REVIEWED.read_text(encoding="utf-8")) or {}
    good, said = judge(answer, reviewed, datetime.date.today())
    print("\n".join(said))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
