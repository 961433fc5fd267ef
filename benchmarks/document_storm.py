"""Runs spoiled at random in several ways at once, each from a number that makes the same run again."""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from document_policy import faults
from document_runs import Documents, Run
from document_spoiling import spoiled
from document_trial import Ending, Trial, differs, wrong_with

# Documents of megabytes, tried one by one elsewhere, would be all that a storm does.
_SLOW = ("100 000 data keys", "megabyte", "10 000 deep")


@dataclass
class Tally:
    """What became of the runs of a storm.

    Attributes
    ----------
    ends : Counter
        How they ended.
    wrong : dict
        Number of a run -> what it was, and what was wrong with it.
    """

    ends: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, list[str]] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        """How many were tried."""
        return sum(self.ends.values())


class Storm:
    """Spoils whole runs.

    Parameters
    ----------
    runs : list of Run
        What is spoiled.
    wholes : mapping
        Kind -> how such a run ends when nothing is wrong.
    """

    def __init__(self, runs: list[Run], wholes: Mapping[str, Ending]) -> None:
        self._runs = runs
        self._wholes = wholes
        self._faults = [one for one in faults() if not any(word in one.name for word in _SLOW)]

    def one(self, seed: int) -> tuple[str, str, list[str]]:
        """What run `seed` was, how it ended, and what was wrong with that."""
        rng = Random(seed)
        run = rng.choice(self._runs)
        documents, said, values = run.copied(), [run.kind], False
        if rng.random() < 0.5:
            fault = rng.choice([one for one in self._faults if run.kind in one.kinds])
            documents, values = fault.spoil(documents, rng), True
            said.append(fault.name)
        for _ in range(rng.randint(0, 3)):
            change = rng.choice(_CHANGES)
            documents, lossless = change(documents, rng)
            values = values or not lossless
            said.append(change.__name__)
        trial = Trial(run.uid, [run.profile], run.folder)
        dies = {rng.randrange(len(documents) + 1) for _ in range(rng.choice((0, 0, 1, 2)))}
        for number, (name, doc) in enumerate(documents):
            if number in dies:
                trial.restart()
                said.append(f"restart at {number}")
            trial.give(name, doc)
        ending = trial.end()
        found = wrong_with(ending)
        if not values and ending.how != "passed_by":
            found += differs(ending, self._wholes[run.kind], part=True)
        return ", ".join(said), ending.how, found

    def blow(self, first: int, go_on: Callable[[int], bool]) -> Tally:
        """Try run after run from number `first`, as long as `go_on` says of how many were tried."""
        tally = Tally()
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            while go_on(tally.runs):
                seed = first + tally.runs
                try:
                    what, how, found = self.one(seed)
                except Exception as error:  # noqa: BLE001 - whatever leaks is what is looked for
                    what, how, found = "", "raised", [f"{type(error).__name__}: {error}"]
                tally.ends[how] += 1
                if found:
                    tally.wrong[seed] = [what, *found]
        logging.disable(logging.NOTSET)
        return tally


def _junk(documents: Documents, rng: Random) -> tuple[Documents, bool]:
    """Junk in one to five documents."""
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(documents))
        name, doc = documents[at]
        if isinstance(doc, dict) and doc:
            documents[at] = (name, spoiled(doc, rng))
    return documents, False


def _lost(documents: Documents, rng: Random) -> tuple[Documents, bool]:
    """Some documents lost, never the start."""
    if len(documents) < 2:
        return documents, True
    gone = {rng.randrange(1, len(documents)) for _ in range(rng.randint(1, 6))}
    return [one for number, one in enumerate(documents) if number not in gone], True


def _repeated(documents: Documents, rng: Random) -> tuple[Documents, bool]:
    """Some documents once more, later."""
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(documents))
        documents.insert(rng.randint(at + 1, len(documents)), documents[at])
    return documents, True


def _mixed(documents: Documents, rng: Random) -> tuple[Documents, bool]:
    """Some documents elsewhere, never the start."""
    for _ in range(rng.randint(1, 6)):
        if len(documents) > 2:
            one = documents.pop(rng.randrange(1, len(documents)))
            documents.insert(rng.randint(1, len(documents)), one)
    return documents, True


def _renamed(documents: Documents, rng: Random) -> tuple[Documents, bool]:
    """A document under the name of another kind."""
    at, other = rng.randrange(len(documents)), rng.randrange(len(documents))
    documents[at] = (documents[other][0], documents[at][1])
    return documents, False


_CHANGES = (_junk, _junk, _lost, _repeated, _mixed, _renamed)
