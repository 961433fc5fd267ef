"""Likeness of objects: planted kinds are found again from a few examples, and grouped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.models.likeness import cluster, more_like
from inscan.models.objects import segment

ELEMENTS = ["P_K", "Ca_K", "Fe_K", "Zn_K"]
KINDS = {
    "plain": (1.1, (60.0, 15.0, 5.0, 3.0)),
    "zinc": (1.1, (60.0, 15.0, 5.0, 9.0)),
    "rod": (2.8, (60.0, 15.0, 5.0, 3.0)),
}


def _field(seed: int) -> tuple[np.ndarray, list[tuple[int, int, str]]]:
    """Counts of a field of objects whose size, direction and thickness vary, and where each kind is."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:160, :160].astype(float)
    expected = np.full((4, 160, 160), 2.0)
    truth = []
    for r in range(13, 150, 19):
        for c in range(13, 150, 19):
            kind = str(rng.choice(list(KINDS), p=[0.6, 0.2, 0.2]))
            aspect, mean = KINDS[kind]
            radius, angle = rng.uniform(3.0, 4.5), rng.uniform(0, np.pi)
            along = (row - r) * np.cos(angle) + (col - c) * np.sin(angle)
            across = (col - c) * np.cos(angle) - (row - r) * np.sin(angle)
            inside = (along**2 / aspect + across**2 * aspect) <= radius**2
            amount = np.exp(rng.normal(0, 0.25) + rng.normal(0, 0.1, 4))
            expected += inside * (np.array(mean) * amount)[:, None, None]
            truth.append((r, c, kind))
    return rng.poisson(expected).astype(float), truth


def _objects(seed: int):
    counts, truth = _field(seed)
    found = segment(counts, names=ELEMENTS, chosen=[0])
    places = np.array([(r, c) for r, c, _ in truth])
    nearest = [int(np.hypot(*(places - centre).T).argmin()) for centre in found.centres]
    return found, np.array([truth[index][2] for index in nearest])


@pytest.fixture(scope="module")
def fields():
    return [_objects(seed) for seed in range(3)]


def _recall(ranked, kinds: np.ndarray, kind: str) -> float:
    """Share of a kind among as many of the best as there are of it."""
    right = [kinds[one.index] == kind for one in ranked]
    return float(np.mean(right[: sum(right)]))


@pytest.mark.parametrize("kind", ["zinc", "rod"])
def test_more_like_these_finds_the_same_kind(fields, kind: str) -> None:
    recalls, chance = {1: [], 3: []}, []
    for found, kinds in fields:
        features, names = found.compared()
        ours = np.flatnonzero(kinds == kind)
        for examples in recalls:
            for first in range(0, 6, 2):
                chosen = [int(i) for i in ours[first : first + examples]]
                ranked = more_like(features, chosen, names=names)
                assert {one.index for one in ranked} == set(range(len(found))) - set(chosen)
                recalls[examples].append(_recall(ranked, kinds, kind))
        chance.append(float(np.mean(kinds == kind)))
    one, three, random = np.mean(recalls[1]), np.mean(recalls[3]), np.mean(chance)
    assert random < 0.35
    assert one > 2 * random and three > 0.75 and three >= one


def test_scores_are_roughly_probabilities(fields) -> None:
    scores, right = [], []
    for found, kinds in fields:
        features, _ = found.compared()
        for kind in ("zinc", "rod"):
            for one in more_like(features, [int(i) for i in np.flatnonzero(kinds == kind)[:3]]):
                scores.append(one.score)
                right.append(kinds[one.index] == kind)
    score, true = np.array(scores), np.array(right)
    assert 0 <= score.min() and score.max() <= 1
    assert true[score > 0.75].mean() > 0.75 and true[score < 0.1].mean() < 0.1
    assert ((score - true) ** 2).mean() < 0.11 < 0.9 * true.mean() * (1 - true.mean())


def test_reasons_name_what_agrees_with_values(fields) -> None:
    found, kinds = fields[0]
    features, names = found.compared()
    ranked = more_like(features, [int(i) for i in np.flatnonzero(kinds == "zinc")[:3]], names=names)
    assert "mean Zn_K" in ranked[0].agrees
    assert "like them in " in ranked[0].reason and "mean Zn_K" in ranked[0].reason
    value = features[ranked[0].index, names.index("mean Zn_K")]
    assert f"mean Zn_K {value:.3g}" in ranked[0].reason
    assert "unlike in " in ranked[-1].reason and ranked[-1].differs


def test_what_is_rejected_takes_its_kind_along(fields) -> None:
    found, kinds = fields[1]
    features, _ = found.compared()
    zinc, rods = (np.flatnonzero(kinds == kind) for kind in ("zinc", "rod"))
    before = {one.index: one.score for one in more_like(features, [int(zinc[0])])}
    after = {
        one.index: one.score
        for one in more_like(features, [int(zinc[0])], [int(i) for i in rods[:2]])
    }
    assert not set(after) & set(rods[:2].tolist())
    assert all(after[index] <= before[index] for index in after)
    left = [index for index in rods[2:] if before[index] > 0.01]
    assert np.mean([after[i] / before[i] for i in left]) < 0.5


def test_what_lies_far_off_is_not_the_likest() -> None:
    """Beyond the examples' kind there is nothing: an object there is not more of the kind for that."""
    kind, rest = [20.0, 19.6, 20.4, 20.8, 19.2], np.linspace(9, 11, 30)
    features = np.concatenate([kind, rest, [30.0]])[:, None]
    ranked = more_like(features, [0])
    assert {one.index for one in ranked[:4]} == {1, 2, 3, 4} and ranked[4].index == 35
    assert ranked[3].score > ranked[4].score > ranked[5].score


def test_groups_are_the_planted_kinds() -> None:
    rng = np.random.default_rng(5)
    centres = np.array([[10.0, 100.0, 5.0], [40.0, 100.0, 5.0], [10.0, 20.0, 50.0]])
    kinds = np.repeat([0, 1, 2], [40, 25, 15])
    features = centres[kinds] * np.exp(rng.normal(0, 0.1, (80, 3)))
    order = rng.permutation(80)
    found = cluster(features[order], names=["area", "Fe", "Zn"])
    np.testing.assert_array_equal(found.labels, kinds[order])
    np.testing.assert_allclose(found.membership.sum(axis=1), 1)
    assert (found.membership.argmax(axis=1) == found.labels).all()
    assert "high area" in found.reasons[1] and "high Zn" in found.reasons[2]
    members = found.members(2)
    assert sorted(members) == sorted(np.flatnonzero(kinds[order] == 2))
    away = found.distances[members, 2]
    assert (np.diff(away) >= 0).all()
    again = cluster(features[order], names=["area", "Fe", "Zn"])
    np.testing.assert_array_equal(again.membership, found.membership)
    assert cluster(features, clusters=5).membership.shape == (80, 5)


def test_membership_is_that_of_plain_distances() -> None:
    """Two groups of one object each, and one between them at a third of the way."""
    features = np.array([[-1.0], [0.0], [2.0], [-1.0], [2.0]])
    found = cluster(features, clusters=2)
    at_centre = found.distances.min(axis=1) < 1e-9
    assert at_centre.any() and (found.membership[at_centre].max(axis=1) == 1).all()
    between = found.distances[~at_centre]
    expected = (1 / between**2) / (1 / between**2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.membership[~at_centre], expected)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1000))
def test_any_finite_features_can_be_compared(count: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = np.round(rng.normal(0, 10.0 ** rng.integers(-6, 7), (count, width)), 1)
    ranked = more_like(features, [0])
    assert len(ranked) == count - 1 and ranked == more_like(features, [0])
    assert all(0 <= one.score <= 1 and one.reason for one in ranked)
    groups = cluster(features)
    assert np.isfinite(groups.membership).all() and len(groups.labels) == count
    np.testing.assert_allclose(groups.membership.sum(axis=1), 1)


def test_objects_all_the_same_are_alike() -> None:
    features = np.ones((4, 3))
    assert [one.score for one in more_like(features, [2])] == [1.0, 1.0, 1.0]
    assert cluster(features).labels.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("features", "chosen", "rejected", "said"),
    [
        (np.empty((0, 3)), [0], [], "there are no objects: nothing stands out"),
        (np.ones((3, 2)), [], [], "one example at least"),
        (np.ones((3, 2)), [3], [], "example 3: there are objects 0 to 2"),
        (np.ones((3, 2)), [0], [-1], "example -1"),
        (np.ones((3, 2)), [0, 1], [1], "object 1 is both chosen and rejected"),
        (np.full((3, 2), np.nan), [0], [], "finite"),
        (np.ones(3), [0], [], r"shape \(object, feature\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(features, chosen, rejected, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        more_like(features, chosen, rejected)


def test_groups_need_objects_and_a_number() -> None:
    with pytest.raises(ValueError, match="there are no objects"):
        cluster(np.empty((0, 2)))
    with pytest.raises(ValueError, match="clusters 0"):
        cluster(np.ones((3, 2)), clusters=0)
    with pytest.raises(ValueError, match="1 names for 2 features"):
        cluster(np.ones((3, 2)), names=["a"])


@pytest.mark.parametrize("features", [np.ones((1, 3)), np.ones((5, 3))], ids=["one", "all alike"])
def test_two_groups_of_what_is_one_are_one(features) -> None:
    groups = cluster(features, clusters=2, names=["a", "b", "c"])
    assert groups.membership.shape == (len(features), 1)
    assert (groups.labels == 0).all()
