"""What is made of an audit of the dependencies."""

import datetime
import importlib.util
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "docker" / "audit.py"
TODAY = datetime.date(2026, 12, 1)
BAD = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
UNTIL = {"reason": "never called", "until": datetime.date(2026, 12, 31)}


def test_a_known_vulnerability_fails_unless_it_was_reviewed_and_an_unreachable_service_does_not():
    spec = importlib.util.spec_from_file_location("audit", FILE)
    assert spec is not None and spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)

    def judged(*vulns, reviewed=None, today=TODAY):
        rows = [
            {"name": "a", "version": "1.0", "vulns": list(vulns)},
            {"name": "b", "skip_reason": "?"},
        ]
        return audit.judge({"dependencies": rows}, reviewed or {}, today)

    assert judged()[0]
    good, said = judged(BAD)
    assert not good and "a 1.0: PYSEC-1, fixed in 2.0" in said[-1]
    assert judged(BAD, reviewed={"CVE-1": UNTIL})[0]
    assert not judged(BAD, reviewed={"CVE-1": UNTIL}, today=datetime.date(2027, 1, 1))[0]
    assert not judged(BAD, reviewed={"CVE-2": UNTIL})[0]
    good, said = audit.judge({"dependencies": [{"name": "b", "skip_reason": "?"}]}, {}, TODAY)
    assert good and "nothing was audited" in said[0]
