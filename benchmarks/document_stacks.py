"""The faults of energies and images of a stack, see `document_faults`."""

from document_runs import energy_stack
from document_spoiling import (
    INF,
    NAN,
    STACK,
    Fault,
    described,
    events,
    put,
    start_with,
)
from document_values import instead

_ENERGIES = (
    ("NaN", [8.3, NAN, 8.34, 8.36]),
    ("zero or negative", [8.3, 0.0, -8.34, 8.36]),
    ("text", ["8.3", "8.32", "8.34", "8.36"]),
    ("beyond numbers", [8.3, 10**400]),
    ("1e300 keV", [8.3, 8.32, 8.34, 1e300]),
    ("none", []),
    ("lists of lists", [[8.3, 8.32], [8.34]]),
    ("a number", 8.3),
)
STACKS: tuple[Fault, ...] = (
    *(
        Fault(
            f"planned energies {name}",
            "refused, and said which key",
            start_with(eng_list=value),
            ("rejected", "passed_by"),
            "eng_list",
            STACK,
        )
        for name, value in _ENERGIES
    ),
    Fault(
        "planned energies falling",
        "sorted",
        instead(lambda: energy_stack((8.36, 8.34, 8.32, 8.30))),
        kinds=STACK,
    ),
    Fault(
        "planned energies in any order, some twice",
        "sorted; images of one energy are averaged, and said",
        instead(lambda: energy_stack((8.36, 8.30, 8.34, 8.32, 8.34))),
        says="planned again",
        kinds=STACK,
    ),
    Fault("a single energy (T = 1)", "result", instead(lambda: energy_stack((8.34,))), kinds=STACK),
    Fault("frames of one pixel", "result", instead(lambda: energy_stack(size=(1, 1))), kinds=STACK),
    *(
        Fault(
            f"images {name}",
            "masked where it is so, and said",
            put(value, dtype),
            kinds=STACK,
        )
        for name, value, dtype in (
            ("NaN", NAN, "<f8"),
            ("infinite", INF, "<f8"),
            ("negative", -5, "<f8"),
            ("1e300", 1e300, "<f8"),
            ("saturated", 65535, "<u2"),
            ("zero", 0, "<u2"),
        )
    ),
    Fault(
        "images saturated everywhere",
        "failure record",
        put(65535, "<u2", True),
        ("rejected",),
        "without a measured pixel",
        STACK,
    ),
    Fault("images all the same", "as measured", put(500, "<u2", True), kinds=STACK),
    Fault("images all zero", "as measured", put(0, "<u2", True), kinds=STACK),
    Fault(
        "images of text",
        "left out, and said; failure record",
        put("x", "<U3", True),
        ("rejected",),
        "left out",
        STACK,
    ),
    Fault(
        "energies read back NaN",
        "the planned ones are believed, and said",
        events("mono_energy", NAN),
        kinds=STACK,
        says="sensible",
    ),
    Fault(
        "energies read back 1e300",
        "the planned ones are believed, and said",
        events("mono_energy", 1e300),
        kinds=STACK,
        says="sensible",
    ),
    Fault(
        "energies read back as text",
        "the event is left out, and said",
        events("mono_energy", "high", 0.2),
        ("result", "rejected"),
        "left out",
        STACK,
        "part",
    ),
    Fault(
        "frames declared as text",
        "left out, and said",
        described(lambda keys: keys["txm_image"].update(dtype="string")),
        kinds=STACK,
    ),
    Fault(
        "more images than planned",
        "failure record where nothing tells which is which, else left out",
        start_with(eng_list=[8.30, 8.32]),
        ("result", "rejected"),
        "beyond|came instead",
        STACK,
    ),
    Fault(
        "fewer images than planned",
        "the rest is masked; not complete",
        start_with(eng_list=[8.30, 8.32, 8.34, 8.36, 8.38, 8.40]),
        ("result",),
        "",
        STACK,
    ),
)
