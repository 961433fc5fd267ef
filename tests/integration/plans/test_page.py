"""The blocks of docs/plans.md, in their order, as somebody at the simulated microscope would type them."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "plans.md"


def test_the_blocks_of_the_page_run(microscope, survey, capsys):
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    names = dict(microscope.names)
    before = len(microscope.starts)
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"block {number} of {PAGE.name}", "exec"), names)
    said = capsys.readouterr().out
    assert "fine runs:" in said and "rounds:" in said and "regions:" in said
    asked = [start["inscan"] for start in microscope.starts[before:] if "inscan" in start]
    assert asked == [{"precision": {"Fe_K": 0.25}}]
    surveys = {s["uid"] for s in microscope.starts[before:] if s.get("purpose") == "survey"}
    fine = [s for s in microscope.starts[before:] if s.get("purpose") == "fine"]
    assert len(surveys) == 3 and {start["parent_uid"] for start in fine} <= surveys
    name = names["roi"].proposals[0]["id"]
    assert name in {start["rescan_proposal"] for start in fine}
    microscope.until(lambda: microscope.proposal(name)["state"] == "done")
