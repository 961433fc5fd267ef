"""The faults of values: numbers that are none, clocks that are wrong, beams that are off. See `document_faults`."""

from collections.abc import Callable
from random import Random

from document_runs import Documents, step_map
from document_spoiling import (
    COUNTS,
    INF,
    NAN,
    STACK,
    STEP,
    Fault,
    Spoil,
    events,
    of_event,
    start_with,
)

_LIVE = "xs_channel01_live_time"


def instead(take: Callable[[], Documents]) -> Spoil:
    """Another run under the uid of this one."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        uid = docs[0][1]["uid"]
        return [
            (
                name,
                doc
                | (
                    {"uid": uid}
                    if name == "start"
                    else {"run_start": uid}
                    if "run_start" in doc
                    else {}
                ),
            )
            for name, doc in take()
        ]

    return spoil


def _all_of(part: str, value: object, share: float = 1.0) -> Spoil:
    """Every key with this in its name has a value in a share of the events."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        have = [doc for name, doc in docs if name == "event"]
        for doc in rng.sample(have, max(1, round(share * len(have)))):
            doc["data"] = {k: value if part in k else v for k, v in doc["data"].items()}
        return docs

    return spoil


def _later_duplicate(docs: Documents, rng: Random) -> Documents:
    """One event once more with other data, and a later time."""
    at = rng.choice([k for k, (name, _) in enumerate(docs) if name == "event"])
    old = docs[at][1]
    data = {k: v + 1 if "mcaroi" in k else v for k, v in old["data"].items()}
    return [*docs[:-1], ("event", old | {"time": 9e9, "data": data}), docs[-1]]


def _early_duplicate(docs: Documents, rng: Random) -> Documents:
    """One event once more with other data, and the time of before."""
    at = rng.choice([k for k, (name, _) in enumerate(docs) if name == "event"])
    data = {k: v + 1 if "mcaroi" in k else v for k, v in docs[at][1]["data"].items()}
    return [*docs[:-1], ("event", docs[at][1] | {"data": data}), docs[-1]]


VALUES: tuple[Fault, ...] = (
    *(
        Fault(
            f"counts that are {name}",
            "that channel of the pixel is masked, and said",
            events(COUNTS, value, 0.3),
            says="masked|left out",
            kinds=STEP,
        )
        for name, value in (
            ("NaN", NAN),
            ("infinite", INF),
            ("negative", -1.0),
            ("1e300", 1e300),
            ("null", None),
            ("an integer of 400 digits", 10**400),
        )
    ),
    *(
        Fault(
            f"{name} where counts belong",
            "the event is left out, its pixel masked, and said",
            events(COUNTS, value, 0.3),
            says="left out",
            compare="part",
            kinds=STEP,
        )
        for name, value in (
            ("text", "many"),
            ("text of a number", "12"),
            ("a list", [1.0, 2.0]),
            ("a mapping", {"a": 1}),
            ("a complex number", 1 + 2j),
        )
    ),
    Fault(
        "counts that change from int to float to text in mid-run",
        "numbers are taken, text is left out, and said",
        lambda docs, rng: events(COUNTS, "abc", 0.2)(
            events(COUNTS, lambda v: int(v), 0.5)(docs, rng), rng
        ),
        says="left out",
        compare="part",
        kinds=STEP,
    ),
    Fault("all counts zero", "a measured zero", _all_of("mcaroi", 0.0), kinds=STEP),
    Fault("all counts the same", "as measured", _all_of("mcaroi", 7.0), kinds=STEP),
    Fault(
        "all counts NaN",
        "failure record",
        _all_of("mcaroi", NAN),
        ("rejected",),
        "without a measured pixel",
        STEP,
    ),
    Fault(
        "all counts negative",
        "failure record",
        _all_of("mcaroi", -3.0),
        ("rejected",),
        "without a measured pixel",
        STEP,
    ),
    Fault(
        "an event without a key that is needed",
        "left out, and said",
        lambda docs, rng: [*docs[:4], ("event", docs[4][1] | {"data": {}}), *docs[5:]],
        says="lacks",
        compare="part",
        kinds=STEP,
    ),
    *(
        Fault(
            f"beam monitor (I0) {name} at some points",
            "those pixels are masked, and said",
            events("sclr_i0", value, 0.3),
            says="without beam",
            compare="part",
            kinds=STEP,
        )
        for name, value in (("zero", 0.0), ("negative", -5.0), ("NaN", NAN), ("infinite", INF))
    ),
    *(
        Fault(
            f"beam monitor (I0) {name} at every point",
            "failure record: nothing was measured",
            events("sclr_i0", value),
            ("rejected",),
            "without beam|without a measured pixel",
            STEP,
        )
        for name, value in (("zero", 0.0), ("NaN", NAN))
    ),
    Fault(
        "beam monitor (I0) that spans 600 orders of magnitude",
        "pixels whose exposure no number holds are masked",
        lambda docs, rng: events("sclr_i0", 1e-300, 0.3)(
            events("sclr_i0", 1e300, 0.3)(docs, rng), rng
        ),
        kinds=STEP,
    ),
    *(
        Fault(
            f"live time {name}",
            "that channel of the pixel is masked, and said",
            events(_LIVE, value, 0.3),
            says="masked",
            kinds=STEP,
        )
        for name, value in (
            ("negative (a dead time above 1)", -0.02),
            ("zero", 0.0),
            ("NaN", NAN),
            ("of 1e300 s", 1e300),
        )
    ),
    Fault(
        "a dwell that is negative",
        "not used, and said; live times count",
        start_with(scan={"type": "XRF_STEP", "energy": 12.0, "dwell": -1.0}),
        kinds=STEP,
    ),
    *(
        Fault(
            f"positions {name}",
            "unknown there (NaN); counts stay",
            events("sample_x", value, 0.3),
            kinds=STEP,
        )
        for name, value in (("NaN", NAN), ("infinite", INF), ("1e300", 1e300))
    ),
    Fault(
        "positions as text",
        "the event is left out, and said",
        events("sample_x", "here", 0.3),
        says="left out",
        compare="part",
        kinds=STEP,
    ),
    Fault("a map of one pixel", "result", instead(lambda: step_map(1, 1)), kinds=STEP),
    Fault("a map of a single row", "result", instead(lambda: step_map(1, 6)), kinds=STEP),
    Fault("a map of a single column", "result", instead(lambda: step_map(6, 1)), kinds=STEP),
    *(
        Fault(
            f"seq_num {name}",
            "the event is left out, and said",
            of_event("seq_num", value),
            says="left out|expected",
            compare="part",
            kinds=(*STEP, *STACK),
            ends=("result", "rejected"),
        )
        for name, value in (
            ("0", 0),
            ("negative", -7),
            ("2^62", 2**62),
            ("a fraction", 1.5),
            ("NaN", NAN),
            ("text", "3"),
            ("true", True),
        )
    ),
    Fault(
        "one seq_num twice with other data",
        "what was taken last counts",
        _later_duplicate,
        kinds=STEP,
    ),
    Fault(
        "one seq_num twice with other data at the same time",
        "the first counts",
        _early_duplicate,
        compare="same",
        kinds=STEP,
    ),
    *(
        Fault(
            f"times of events {name}",
            "does not matter unless a point was measured twice",
            of_event("time", value, 0.5),
            compare="same",
            kinds=(*STEP, *STACK),
        )
        for name, value in (
            ("NaN", NAN),
            ("1e300", 1e300),
            ("in the future", 4e9),
            ("infinite", INF),
        )
    ),
    Fault(
        "times of events as text",
        "the event is left out, and said",
        of_event("time", "noon"),
        ("result", "rejected"),
        "left out",
        (*STEP, *STACK),
        "part",
    ),
)
