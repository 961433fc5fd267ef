"""The faults that documents of a run may have, and what inscan does about each: order, loss, ends, names.

Each entry spoils the documents of a whole run and says how the run has to end, and what people are told. Those of
shapes are in `document_shapes`, those of values in `document_values` and `document_stacks`.
"""

from document_spoiling import (
    STACK,
    STEP,
    Fault,
    _bulk,
    cut,
    described,
    each,
    foreign_stop,
    inserted,
    many_keys,
    nested,
    second_start,
    shuffled,
    some_without,
    start_with,
    started_late,
    stop_with,
    stopped,
    swapped,
    twice,
    without,
)

LOSS: tuple[Fault, ...] = (
    Fault("every document twice", "once counts", twice, compare="same"),
    Fault(
        "documents between start and stop in any order",
        "placed by seq_num: the same result to the bit",
        shuffled,
        compare="same",
        kinds=("sim_xrf step", "sim_xrf fly", "sim_txm", "srx step", "srx hf2dxrf"),
    ),
    Fault(
        "a start document after others of its run",
        "what came before it cannot be placed: passed by (with `repair` set, the run is fetched from Tiled)",
        started_late,
        ends=("passed_by",),
        says="start document is missing",
    ),
    Fault(
        "no start document",
        "as above",
        without("start"),
        ends=("passed_by",),
        says="start document is missing",
    ),
    Fault(
        "no descriptor",
        "failure record",
        without("descriptor"),
        ends=("rejected",),
        says="without descriptor|before its map was described|without",
    ),
    Fault(
        "an event missing",
        "its pixel (or the row, or the frame) is masked",
        some_without("event"),
        ends=("result", "rejected"),
        compare="part",
    ),
    Fault(
        "no event", "failure record", without("event"), ends=("rejected",), kinds=(*STEP, *STACK)
    ),
    Fault(
        "a resource or datum missing",
        "what it held is masked, or a failure record says which file was not found",
        some_without("datum"),
        ends=("result", "rejected"),
        compare="part",
        kinds=("srx fly", "srx step", "srx hf2dxrf", "fxi"),
    ),
    Fault(
        "all resources missing",
        "failure record",
        without("resource"),
        ends=("rejected",),
        says="could not be read|has not come",
        kinds=("srx fly", "srx step", "srx hf2dxrf", "fxi"),
    ),
    Fault(
        "a stream_datum missing",
        "taken from the file where that says how far it was written, else masked",
        some_without("stream_datum"),
        compare="part",
        kinds=("sim_xrf fly",),
    ),
    Fault(
        "all stream_resources missing",
        "failure record",
        without("stream_resource"),
        ends=("rejected",),
        kinds=("sim_xrf fly",),
    ),
)

ENDS: tuple[Fault, ...] = (
    Fault(
        "an aborted run",
        "result of what was measured; status and reason of the stop are in it",
        stopped(exit_status="abort", reason="beam dump"),
        ends=("result", "rejected"),
        compare="part",
        says="beam dump",
    ),
    Fault(
        "a failed run",
        "as above",
        stopped(exit_status="fail", reason="motor stalled"),
        ends=("result", "rejected"),
        compare="part",
        says="motor stalled",
    ),
    Fault(
        "no stop",
        "after `incomplete_after` s of silence at the latest: result of what was measured, marked incomplete",
        cut,
        ends=("result", "rejected"),
        compare="part",
        says="without a stop",
    ),
    Fault(
        "a stop and no events",
        "failure record",
        lambda docs, rng: [docs[0], docs[-1]],
        ends=("rejected",),
    ),
    Fault(
        "two stops",
        "the first counts",
        lambda docs, rng: [*docs, ("stop", docs[-1][1] | {"exit_status": "fail"})],
        compare="same",
    ),
    Fault(
        "events after the stop",
        "left out",
        lambda docs, rng: [*docs, docs[_bulk(docs)[0]]],
        compare="same",
    ),
    Fault(
        "the stop of another run",
        "left out, and said",
        foreign_stop,
        compare="same",
        says="another run",
    ),
    Fault(
        "two starts with one uid",
        "the first counts",
        second_start,
        compare="same",
    ),
    Fault(
        "a start, descriptor or event of another run",
        "left out, and said",
        inserted(
            "descriptor", {"uid": "d2", "run_start": "another", "name": "primary", "data_keys": {}}
        ),
        compare="same",
        says="another run",
    ),
    Fault(
        "a stop that says no more than its name",
        "result, marked incomplete",
        lambda docs, rng: [*docs[:-1], ("stop", {})],
    ),
    Fault(
        "exit_status and reason of a megabyte",
        "cut to what a record holds",
        stop_with(exit_status="x" * 1_000_000, reason="y" * 1_000_000),
    ),
    Fault(
        "more events announced in the stop than came",
        "result of what came; with `repair` set, the rest is fetched from Tiled first",
        stop_with(num_events={"primary": 10**9, "stream0": -5, "x": "many"}),
        compare="same",
    ),
)

NAMES: tuple[Fault, ...] = (
    Fault(
        "a uid that is no text, or empty",
        "passed by: such a run has no name",
        swapped,
        ends=("passed_by",),
        says="uid",
    ),
    Fault(
        "keys that are no text",
        "left alone",
        start_with(meta={1: "a", -5: "b"}),
        compare="same",
    ),
    Fault(
        "metadata nested 10 000 deep",
        "what is deeper than a few levels is named by its type alone; passed by where its profile needs it",
        start_with(sample=nested(10_000)),
        ends=("result", "passed_by"),
    ),
    Fault(
        "metadata of a megabyte",
        "left out of the result, and said; the raw run has it",
        start_with(sample={"note": "x" * 2_000_000}),
        says="sample",
    ),
    Fault(
        "numbers beyond 64 bits in the start document",
        "their text is kept",
        start_with(scan_id=2**80, proposal={"n": 10**400}),
    ),
    Fault(
        "100 000 data keys in a descriptor",
        "those that the profile names are read",
        described(many_keys),
        compare="same",
    ),
    Fault(
        "no data keys in a descriptor",
        "failure record that names the keys that are expected",
        described(dict.clear),
        ends=("rejected",),
        says="has none of|has no|no ",
    ),
    Fault(
        "a descriptor without uid, name or data_keys",
        "left out, and said; failure record when it was the only one",
        each("descriptor", lambda doc: [doc.pop("name"), doc.pop("data_keys")]),
        ends=("rejected",),
        says="descriptor documents left out",
    ),
    Fault(
        "documents of unknown kind",
        "left out, and said",
        inserted("bulk_events", {"uid": "x"}),
        compare="same",
        says="unknown kind",
    ),
)
