"""The whole table of document faults: what tests and torture try, and what the page says."""

from collections.abc import Sequence
from dataclasses import replace

from document_faults import ENDS, LOSS, NAMES
from document_shapes import SHAPES
from document_spoiling import Fault
from document_stacks import STACKS
from document_values import VALUES


def faults() -> Sequence[Fault]:
    """The whole table, by groups."""
    groups = {
        "documents lost, repeated or out of order": LOSS,
        "ends of runs": ENDS,
        "names and metadata": NAMES,
        "declared shapes": SHAPES,
        "maps: values and times": VALUES,
        "stacks: values and energies": STACKS,
    }
    return [replace(one, group=group) for group, some in groups.items() for one in some]


def policy_page() -> str:
    """The table as Markdown."""
    lines = ["# What inscan does about faulty documents", ""]
    lines += [
        "Made of the table that the tests try (`benchmarks/document_policy.py`): every line is a test for each shape of"
        " run that can have the fault. A result with warnings carries them; a failure record has the reason. *masked*:"
        " `measured` is false there, and no value is shown.",
    ]
    group = ""
    for fault in faults():
        if fault.group != group:
            group = fault.group
            lines += [
                "",
                f"## {group[:1].upper()}{group[1:]}",
                "",
                "| fault | what happens |",
                "|---|---|",
            ]
        lines.append(f"| {fault.name} | {fault.does} |")
    return "\n".join(lines) + "\n"
