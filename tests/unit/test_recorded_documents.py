"""Documents that other people's applications recorded, whole and broken: nothing they hold may get
out of an assembler but updates and reasons."""

import copy
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from inscan.callbacks.assembly import NotUnderstood, open_assembler
from inscan.callbacks.profile import BeamlineProfile, load_profile, shipped_profiles
from inscan.callbacks.sources.files import stored_runs
from inscan.callbacks.sources.interface import SourceError
from inscan.callbacks.updates import Update
from inscan.profiles.bluesky_documents import Counts, fly_documents, step_documents
from inscan.profiles.bluesky_starts import grid, spiral

DATA = Path(__file__).parents[3] / "shared" / "data" / "bluesky_docs"
SIM_XRF = load_profile("sim_xrf").model_dump(mode="json")
Documents = list[tuple[str, Any]]


def recorded() -> Iterator[Documents]:
    for path in sorted(DATA.glob("*/*.json*")):
        try:
            runs = stored_runs(path)
        except SourceError:
            continue  # parts of other conversations, no runs
        for run in runs:
            yield list(run.documents())


def shipped() -> list[BeamlineProfile]:
    return [load_profile(name) for name in shipped_profiles()]


def permissive(documents: Documents) -> list[BeamlineProfile]:
    """Return profiles that take the run, each with another of its keys for a detector."""
    xrf = SIM_XRF
    txm = load_profile("sim_txm").model_dump(mode="json")
    start = documents[0][1]
    found = []
    for name, doc in documents:
        if name != "descriptor" or not isinstance(doc.get("data_keys"), Mapping):
            continue
        stream = str(doc.get("name"))
        arrays = [k for k, d in doc["data_keys"].items() if isinstance(d, dict) and d.get("shape")]
        scalars = [
            k for k, d in doc["data_keys"].items() if isinstance(d, dict) and not d.get("shape")
        ]
        # Keys with a number first: that may be a channel.
        arrays.sort(key=lambda name: "1" not in name)
        for key in (*arrays[:1], *scalars[1:2]):
            template = key.replace("1", "{channel}", 1)
            for role, keys in (("mcaroi", template), ("spectrum", template), ("spectrum", key)):
                content = copy.deepcopy(xrf)
                content["xrf"] |= {
                    "step": {"stream": stream, role: keys, "i0": None},
                    "fly": None,
                    "incident_energy": None,
                }
                # Any two numbers are as good as motors: the run is points anywhere.
                content["geometry"] |= {"motors": "nowhere", "grid_step": [1, 1]}
                if scalars:
                    content["geometry"] |= {
                        "slow_readback": scalars[0],
                        "fast_readback": scalars[-1],
                    }
                content["xrf"]["elements"] |= {
                    "source": role,
                    "lines": ["Fe_K"],
                    "energy_per_bin_ev": 10.0,
                    "energy_offset_ev": 0.0,
                }
                found.append(content)
            content = copy.deepcopy(txm)
            content["txm"] |= {"image": key, "streams": {"primary": stream}}
            found.append(content)
    profiles = []
    for content in found:
        content["match"] = {"uid": start["uid"]}
        content["read_deadline"] = 0
        profiles.append(BeamlineProfile.model_validate(content))
    return profiles


def feed(documents: Documents, profile: BeamlineProfile) -> list[Update]:
    starts = [doc for name, doc in documents if name == "start"] or [{}]
    try:
        assembler = open_assembler(starts[0], [profile])
    except NotUnderstood as error:
        assert "\n" not in str(error)
        return []
    updates = [update for name, doc in documents for update in assembler(name, doc)]
    updates += assembler.finish("the end")
    assert updates, "a run that was opened ends with a word on it"
    assert updates[-1].kind in ("final", "rejected")
    for update in updates:
        json.dumps(update.meta, allow_nan=False)
    return updates


def broken(documents: Documents, seed: int) -> Documents:
    """Return the run shuffled, cut, and with random fields gone or of another kind."""
    rng = random.Random(seed)
    rest = documents[1:]
    if seed % 3 == 0:
        rng.shuffle(rest)
    out = [documents[0], *rest[: rng.randint(0, len(rest))]]
    for _ in range(1 + seed % 5):
        which = rng.randrange(min(seed % 2, len(out) - 1), len(out))
        name, doc = out[which]
        out[which] = name, _spoilt(copy.deepcopy(doc), rng)
    return out


def _spoilt(whole: Any, rng: random.Random) -> Any:
    """Return a document with one thing in it changed."""
    doc = whole
    while isinstance(doc, dict) and doc:
        key = rng.choice(list(doc))
        if isinstance(doc[key], dict) and doc[key] and rng.random() < 0.7:
            doc = doc[key]
            continue
        if key == "uid":
            break
        if rng.random() < 0.5:
            del doc[key]
        else:
            doc[key] = rng.choice([None, -1, "x", [], {}, [[1], 2], 1e400, 2**70, True, [None] * 3])
        break
    return whole


@pytest.mark.measured
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the recorded documents beside the project")
def test_recorded_runs_are_read_or_passed_by():
    kinds, everybody = set(), shipped()
    for documents in recorded():
        for profile in everybody + permissive(documents):
            kinds |= {(profile.technique, update.kind) for update in feed(documents, profile)}
            for seed in range(3):
                feed(broken(documents, seed), profile)
    assert {("xrf", "final"), ("xrf", "rejected")} <= kinds, "nothing was tested"


@pytest.mark.parametrize("seed", range(60))
def test_broken_synthetic_runs_never_get_out(tmp_path, seed):
    plan = grid((3, 4), (0, 1), (0, 1), snake=True) if seed % 2 else spiral(3, 1, 5)
    counts = Counts.drawn(plan.n)
    if seed % 4 < 2:
        documents = list(step_documents(plan, counts))
    else:
        documents = list(fly_documents(plan, counts, tmp_path))
    content = SIM_XRF | {"match": {"uid": documents[0][1]["uid"]}, "read_deadline": 0}
    content["data_roots"] = [str(tmp_path)]
    feed(broken(documents, seed), BeamlineProfile.model_validate(content))
