"""The faults of declared shapes, see `document_faults`."""

from document_spoiling import (
    INF,
    NAN,
    STACK,
    STEP,
    Fault,
    _image,
    described,
    shapes,
    start_with,
)

SHAPES: tuple[Fault, ...] = (
    *(
        Fault(
            f"a map of {name}",
            "refused before anything is allocated",
            start_with(shape=shape),
            ends=("rejected", "passed_by"),
            says="shape|whole|expected|num_",
            kinds=STEP,
        )
        for name, shape in (
            ("10^12 pixels", [10**6, 10**6]),
            ("2^63 rows", [2**63, 4]),
            ("2^32 x 2^32 pixels (the product overflows to 0)", [2**32, 2**32]),
            ("no rows", [0, 4]),
            ("-3 rows", [-3, 4]),
            ("2.5 rows", [2.5, 4]),
            ("NaN rows", [NAN, 4]),
            ("three axes", [2, 3, 4]),
            ("text for numbers", ["three", "four"]),
        )
    ),
    Fault(
        "a map of 2.6e8 pixels, more than a spool holds",
        "refused before anything is allocated",
        start_with(shape=[2**14, 2**14]),
        ends=("rejected", "passed_by"),
        says="bytes",
        kinds=STEP,
    ),
    *(
        Fault(
            f"frames declared as {name}",
            "refused before anything is allocated",
            described(shapes(*shape)),
            ends=("rejected",),
            says="shape|camera|bytes|declare",
            kinds=STACK,
        )
        for name, shape in (
            ("10^6 x 10^6", (1, 10**6, 10**6)),
            ("2^63 wide", (1, 2**63, 1)),
            ("-1 wide", (1, -1, 6)),
            ("0 wide", (1, 0, 6)),
            ("without axes", (6,)),
            ("NaN wide", (1, NAN, 6)),
            ("16384 x 16384", (1, 2**14, 2**14)),
        )
    ),
    Fault(
        "spectra declared with 2^63 bins, or none",
        "failure record",
        described(shapes(1, 2**63)),
        ends=("rejected",),
        kinds=("srx step", "srx hf2dxrf"),
    ),
    Fault(
        "shape and extents that name other numbers of axes",
        "passed by, and said which key",
        start_with(extents=[[0.0, 1.0]]),
        ends=("rejected", "passed_by"),
        says="extents",
        kinds=STEP,
    ),
    Fault(
        "extents reversed",
        "the map goes down: as planned",
        start_with(extents=[[4.0, 0.0], [16.0, 10.0]]),
        kinds=STEP,
        says="more than half a step",
    ),
    Fault(
        "extents that are NaN, infinite or beyond numbers",
        "passed by, and said",
        start_with(extents=[[-1e308, 1e308], [0.0, INF]]),
        ends=("rejected", "passed_by"),
        says="finite|extents",
        kinds=STEP,
    ),
    Fault(
        "more events than planned",
        "those beyond are left out, and said",
        start_with(shape=[2, 4], extents=[[0.0, 2.0], [10.0, 16.0]]),
        says="beyond",
        kinds=STEP,
    ),
    Fault(
        "fewer events than planned",
        "the rest is masked; not complete",
        start_with(shape=[6, 4], extents=[[0.0, 10.0], [10.0, 16.0]]),
        kinds=STEP,
    ),
    Fault(
        "a descriptor again in mid-run with other keys",
        "its data are left out, and said",
        described(lambda keys: [keys.pop(k) for k in list(keys) if "mcaroi03" in k], again=True),
        compare="part",
        says="left out",
        kinds=STEP,
    ),
    Fault(
        "a descriptor again in mid-run with another shape of frames",
        "failure record that names both",
        described(shapes(1, 3, 3), again=True),
        ends=("rejected",),
        says="in an earlier one",
        kinds=STACK,
    ),
    Fault(
        "frames of another shape than declared",
        "left out, and said",
        _image(lambda image: image[:, :-1]),
        ends=("rejected",),
        says="the descriptor",
        kinds=STACK,
    ),
    Fault(
        "ragged rows in a frame",
        "left out, and said",
        _image(lambda image: [[list(range(k)) for k in range(5)]]),
        ends=("rejected",),
        says="left out",
        kinds=STACK,
    ),
)
