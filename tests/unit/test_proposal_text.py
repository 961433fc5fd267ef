"""What people read of a proposal, within the width of a terminal."""

import io
import time
from typing import Any

import pytest
from rich.console import Console

from inscan.service.proposal_text import brief, described, duration, followed_by, listed

NOW = time.time()
ID = "0a1b2c3d-0000-4000-8000-000000000001"
REGIONS = [
    {
        "label": f"{number}-Fe_K",
        "slow_range": [10.5, 21.5],
        "fast_range": [-2.5, 13.5],
        "shape": [44, 64],
        "step": [0.25, 0.25],
        "dwell": 0.02,
        "time_s": 61.25,
        "dose": 32.0,
        "information": 4621.7,
        "reason": "Fe_K: 120 counts within 3 pixels of row 12, column 4 where 31 are expected",
        "predicted": {"line": "Fe_K", "relative_sigma_before": 0.4, "relative_sigma": 0.07},
    }
    for number in (1, 2)
]
PROPOSAL: dict[str, Any] = {
    "id": ID,
    "run_uid": "5eed0000-0000-4000-8000-000000000001",
    "survey_uid": "5eed0000-0000-4000-8000-000000000001",
    "result_uid": "b2cfc4f6-0000-4000-8000-000000000001",
    "state": "suggested",
    "mode": "approve",
    "who": "inscan",
    "reason": "2 of 3 regions, within all limits",
    "kind": "map",
    "through": "plan",
    "round": 1,
    "motors": ["sample_y", "sample_x"],
    "units": ["um", "um"],
    "regions": REGIONS,
    "dropped": [
        {
            "rule": "max_time",
            "text": "time of all that is measured again would be 712 s",
            "limit": 600.0,
            "value": 712.0,
            "units": "s",
            "region": "3-Ca_K",
        }
    ],
    "time_s": 122.5,
    "exposure_s": 112.6,
    "area_um2": 352.0,
    "dose": 32.0,
    "expires": NOW + 3600,
    "context": {"scan.energy": 12.0},
    "history": [{"state": "suggested", "who": "inscan", "reason": "found", "at": NOW - 60}],
}


def printed(parts: list[Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (4.25, "4.25 s"), (134, "2 min 14 s"), (14_340, "3 h 59 min"), (-5, "-5 s")],
)
def test_times_are_said_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_everything_is_said_of_one() -> None:
    text = printed(described(PROPOSAL, 41, NOW))
    for words in (
        "proposal 0a1b2c3d",
        "scan 41, run 5eed0000, result b2cfc4f6",
        "2 regions, 2 min 2 s, 1 min 53 s of exposure, 352 um^2, 32 times the survey's dose",
        "approve, taken through a plan",
        "(in 1 h 0 min)",
        "scan.energy 12",
        "sample_y",
        "10.5 to 21.5",
        "-2.5 to 13.5",
        "44 x 64",
        "61.25",
        "40, 7 %",
        "Fe_K: 120 counts within 3 pixels",
        "max_time",
        "712",
        "suggested by inscan",
    ):
        assert words in text, words
    assert "predicted and measured" not in text
    assert ID not in text, "what is printed fits the line, and is as much as the commands need"


def test_what_was_measured_stands_beside_what_was_predicted() -> None:
    record = {
        "region": "1-Fe_K",
        "run_uid": "fine-1",
        "predicted": {"time_s": 61.25, "relative_sigma": 0.07, "line": "Fe_K", "counts": 0.0},
        "measured": {
            "time_s": 70.0,
            "relative_sigma": 0.084,
            "counts": 3.0,
            "found": True,
            "shift": [0.125, -0.5],
            "agrees": False,
            "confirmed": True,
            "likelihood_ratio": 34.25,
        },
    }
    done = {
        "state": "done",
        "measured": [record, {"region": "2-Fe_K"}],
        "covered": ["1-Fe_K"],
        "begun": [{"region": "2-Fe_K"}, {"region": "2-Fe_K"}],
        "fine_uids": ["fine-1"],
        "attempts": 2,
        "regions": REGIONS[1:],
        "all_regions": REGIONS,
    }
    text = printed(described(PROPOSAL | done, 41, NOW))
    for words in (
        "predicted and measured",
        "sigma over value",
        "1.2",
        "1.143",
        "2 times",
        "fine-1",
    ):
        assert words in text, words
    # What is left after an attempt is not all that there was.
    assert "1-Fe_K" in text and "measured" in text and "begun 2x" in text
    assert "(in " not in text, "nobody waits for it any more"


def test_energies_are_listed() -> None:
    some = {"kind": "energies", "energies_ev": [8331.5, 8340.0], "exposure_factor": 2.0}
    energies = PROPOSAL | some | {"regions": [], "dwell": 0.5, "motors": ["mono", ""]}
    text = printed(described(energies, None, NOW))
    assert "energies to add (eV): 8331.50, 8340.00; 0.5 s each, 2 times the survey's" in text
    assert brief(energies).startswith("2 energies, ") and "scan 41" not in text
    assert "2 eV" in printed([listed([energies], {}, NOW)])


@pytest.mark.parametrize("width", [80, 100])
def test_the_list_fits_a_terminal(width: int) -> None:
    refused = PROPOSAL | {"state": "refused", "reason": "max_area: all regions would cover 3 m^2"}
    old = PROPOSAL | {"id": "ffffffff" + ID[8:], "state": "expired", "expires": NOW - 5}
    text = printed([listed([PROPOSAL, refused, old], {PROPOSAL["run_uid"]: 41}, NOW)], width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert text.startswith("3 proposals")
    for words in ("0a1b2c3d", "ffffffff", "41", "suggested", "2 min 2 s", "1 h 0 min"):
        assert words in text, words
    assert width < 100 or "max_area" in text
    assert "1 proposal" in printed([listed([PROPOSAL], {}, NOW)], width)


def test_what_a_proposal_waits_for_in_a_queue_is_said() -> None:
    waits = PROPOSAL | {"state": "approved", "through": "queue", "queue": "environment is closed"}
    assert "environment" in printed([listed([waits], {}, NOW)])
    text = printed(described(waits, 41, NOW))
    assert "waits for  environment is closed" in text and "taken through the queue server" in text


def test_an_approval_says_who_goes_on_and_until_when() -> None:
    text = followed_by(PROPOSAL, NOW)
    assert "the plan that waits for this scan takes it" in text
    assert "measure_proposal(connection, '0a1b2c3d', ...)" in text and "(in 1 h 0 min)" in text
    assert "front of the queue server's queue" in followed_by(PROPOSAL | {"through": "queue"}, NOW)
    assert "nobody" not in followed_by({"id": ID}, NOW)


def test_a_proposal_of_an_older_service_is_printed_all_the_same() -> None:
    text = printed(
        described({"id": ID, "run_uid": "r", "state": "refused", "who": "ada"}, None, NOW)
    )
    assert "refused by ada" in text
