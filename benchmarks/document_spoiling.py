"""What a fault of documents is, and the ways in which documents of a whole run are spoiled."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np
from document_runs import Documents, Run

End = Literal["result", "rejected", "failed", "passed_by"]
Spoil = Callable[[Documents, Random], Documents]

EVERY = ("sim_xrf step", "sim_xrf fly", "sim_txm", "srx fly", "srx step", "srx hf2dxrf", "fxi")
STEP, STACK = ("sim_xrf step",), ("sim_txm",)
FILES = ("sim_xrf fly", "srx fly", "srx step", "srx hf2dxrf", "fxi")
COUNTS = "xs_channel01_mcaroi01_total_rbv"
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Fault:
    """One kind of trouble.

    Attributes
    ----------
    name : str
        What is wrong, in a few words.
    does : str
        What inscan does about it.
    spoil : callable
        (documents of a whole run, random) -> documents with the fault.
    ends : tuple of str
        How the run may end.
    says : str
        Words that people must be told; empty: nothing.
    kinds : tuple of str
        Shapes of runs that can have it.
    compare : str
        ``same``: the result is that of the whole run to the bit; ``part``: pixels may be missing, none may be other.
    group : str
        Heading in the table.
    """

    name: str
    does: str
    spoil: Spoil
    ends: tuple[End, ...] = ("result",)
    says: str = ""
    kinds: tuple[str, ...] = EVERY
    compare: Literal["", "same", "part"] = ""
    group: str = ""

    def of(self, run: Run, seed: int) -> Documents:
        """Documents of a run with this fault."""
        return self.spoil(run.copied(), Random(f"{self.name}/{run.kind}/{seed}"))


def _bulk(documents: Documents) -> list[int]:
    return [k for k, (name, _) in enumerate(documents) if name in ("event", "stream_datum")]


def without(name: str) -> Spoil:
    """All documents of a kind are missing."""
    return lambda docs, rng: [one for one in docs if one[0] != name]


def some_without(name: str) -> Spoil:
    """One document of a kind is missing."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        at = [k for k, one in enumerate(docs) if one[0] == name]
        lost = rng.choice(at) if at else -1
        return [one for k, one in enumerate(docs) if k != lost]

    return spoil


def twice(docs: Documents, rng: Random) -> Documents:
    """Every document comes twice, the second time at any later moment before the stop."""
    body = docs[1:-1]
    found = list(body)
    for number, one in enumerate(body):
        found.insert(rng.randint(found.index(body[number]) + 1, len(found)), one)
    return [docs[0], docs[0], *found, docs[-1], docs[-1]]


def shuffled(docs: Documents, rng: Random) -> Documents:
    """Everything between start and stop in any order."""
    body = docs[1:-1]
    rng.shuffle(body)
    return [docs[0], *body, docs[-1]]


def started_late(docs: Documents, rng: Random) -> Documents:
    """Start after other documents."""
    at = rng.randint(2, len(docs) - 1)
    return [*docs[1:at], docs[0], *docs[at:]]


def cut(docs: Documents, rng: Random) -> Documents:
    """Nothing from some event on, and no stop."""
    return docs[: rng.choice(_bulk(docs)[1:])]


def stopped(**fields: Any) -> Spoil:
    """The run is aborted after some events, with these fields in its stop."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        return [*cut(docs, rng), ("stop", docs[-1][1] | fields)]

    return spoil


def stop_with(**fields: Any) -> Spoil:
    """The stop of the whole run says something else."""
    return lambda docs, rng: [*docs[:-1], ("stop", docs[-1][1] | fields)]


def foreign_stop(docs: Documents, rng: Random) -> Documents:
    """The stop of another run comes in the middle."""
    at = rng.choice(_bulk(docs))
    return [*docs[:at], ("stop", docs[-1][1] | {"run_start": "another"}), *docs[at:]]


def inserted(name: str, doc: Any) -> Spoil:
    """A document of nobody's comes in the middle."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        at = rng.choice(_bulk(docs))
        return [*docs[:at], (name, doc), *docs[at:]]

    return spoil


def start_with(**fields: Any) -> Spoil:
    """The start document says something else; None: the key is missing."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        start = {k: v for k, v in (docs[0][1] | fields).items() if v is not None}
        return [("start", start), *docs[1:]]

    return spoil


def second_start(docs: Documents, rng: Random) -> Documents:
    """Another start document of the same uid comes later."""
    other = docs[0][1] | {"shape": [99, 99], "eng_list": [1.0], "scan_id": 99}
    at = rng.choice(_bulk(docs))
    return [*docs[:at], ("start", other), *docs[at:]]


def each(name: str, change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Every document of a kind is changed in place."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        for kind, doc in docs:
            if kind == name:
                change(doc)
        return docs

    return spoil


def events(key: str, value: Any, share: float = 1.0) -> Spoil:
    """A share of all events carry this value (or what it makes of the old one) under a key."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        have = [doc for name, doc in docs if name == "event" and key in doc["data"]]
        for doc in rng.sample(have, max(1, round(share * len(have)))):
            old = doc["data"][key]
            doc["data"] = doc["data"] | {key: value(old) if callable(value) else value}
        return docs

    return spoil


def of_event(key: str, value: Any, share: float = 0.3) -> Spoil:
    """A share of all events have this in place of one of their own fields."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        have = [doc for name, doc in docs if name == "event"]
        for doc in rng.sample(have, max(1, round(share * len(have)))):
            doc[key] = value(doc[key]) if callable(value) else value
        return docs

    return spoil


def described(change: Callable[[dict[str, Any]], Any], *, again: bool = False) -> Spoil:
    """Data keys of every descriptor are changed; ``again``: in a second descriptor in mid-run, for what follows."""

    def spoil(docs: Documents, rng: Random) -> Documents:
        if not again:
            for name, doc in docs:
                if name == "descriptor":
                    change(doc["data_keys"])
            return docs
        at = rng.choice(_bulk(docs)[1:])
        uid = next(doc for name, doc in docs[at:] if name in ("event", "stream_datum"))[
            "descriptor"
        ]
        old = next(doc for name, doc in docs if name == "descriptor" and doc["uid"] == uid)
        keys = {key: dict(value) for key, value in old["data_keys"].items()}
        change(keys)
        new = old | {"uid": f"{uid}-again", "data_keys": keys}
        for _, doc in docs[at:]:
            if doc.get("descriptor") == uid:
                doc["descriptor"] = new["uid"]
        return [*docs[:at], ("descriptor", new), *docs[at:]]

    return spoil


def shapes(*shape: Any) -> Callable[[dict[str, Any]], None]:
    """Every array is declared with this shape."""

    def change(keys: dict[str, Any]) -> None:
        for key in keys.values():
            if key.get("shape"):
                key["shape"] = list(shape)

    return change


def many_keys(keys: dict[str, Any]) -> None:
    """A hundred thousand keys more."""
    for number in range(100_000):
        keys[f"pv{number:06d}"] = {"dtype": "number", "shape": [], "source": "x"}


def nested(depth: int) -> Any:
    """Mappings in mappings."""
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def swapped(docs: Documents, rng: Random) -> Documents:
    """Uid of the start document is no text."""
    return [("start", docs[0][1] | {"uid": 5}), *docs[1:]]


def _image(change: Callable[[np.ndarray], Any]) -> Spoil:
    def spoil(docs: Documents, rng: Random) -> Documents:
        streams = {doc["uid"]: doc["name"] for name, doc in docs if name == "descriptor"}
        for name, doc in docs:
            if name == "event" and streams[doc["descriptor"]] == "primary":
                image = np.array(doc["data"]["txm_image"])
                doc["data"] = doc["data"] | {"txm_image": change(image)}
        return docs

    return spoil


def put(value: Any, dtype: str = "<f8", everywhere: bool = False) -> Spoil:
    """Some pixels (or all) of the images are this value."""

    def change(image: np.ndarray) -> np.ndarray:
        image = image.astype(dtype)
        image[:, slice(None) if everywhere else 0] = value
        return image

    return _image(change)


JUNK = (
    None,
    "",
    "x",
    "\x00",
    -1,
    0,
    1,
    2**63 - 1,
    2**64 - 1,
    10**30,
    NAN,
    INF,
    -INF,
    1e300,
    5e-324,
    1 + 2j,
    [],
    [[1], [2, 3]],
    {},
    {"a": 1},
    True,
    b"bytes",
    np.zeros((2, 0)),
    np.array(["a"]),
    np.arange(3),
    np.array(NAN),
    "../../etc/passwd",
)


def spoiled(doc: dict[str, Any], rng: Random) -> dict[str, Any]:
    """A document with one value, anywhere inside, replaced by junk or taken out."""
    doc = copy.deepcopy(doc)
    inner: Any = doc
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = rng.choice(keys)
        if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.75:
            inner = inner[key]
        elif rng.random() < 0.3:
            del inner[key]
            return doc
        else:
            inner[key] = rng.choice(JUNK)
            return doc
