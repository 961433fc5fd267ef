"""Which objects are alike: groups of them, and "more like these" for a person who points at a few.

As in ROI-Finder (Chowdhury et al. 2022, J. Synchrotron Rad. 29, 1495) features are standardised,
reduced to principal components and clustered by k-means with soft membership. Unlike there,
membership is that of fuzzy c-means (Bezdek 1981) in plain distances, a centre is no division by
zero, and which group is wanted is said by examples instead of a fixed number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.vq import kmeans, vq
from scipy.spatial.distance import cdist

__all__ = ["Clusters", "Like", "cluster", "more_like"]

Floats = NDArray[np.float64]

_KEPT = 0.9
"""Share of the variance that the principal components hold. On planted kinds of objects, of which three examples found
0.89 so (chance 0.25), 0.95 found 0.85: noise is whitened up. 0.8 found 0.91, but 0.66 instead of 0.74 once four
features that say nothing were added."""
_WIDTH = 1.8
"""Width of the kernel in standard deviations of a component. On the same, of objects scored 0.2, 0.4, 0.6 and 0.8 the
shares 0.08, 0.37, 0.79 and 0.96 were of the kind; narrower promises too little, wider too much."""
_PRIOR = 2.0
"""The spread of the examples is believed as if so many more had been seen with the spread of all objects."""
_MOST_CLUSTERS = 6
_STARTS = 10
_MOST_COMPARED = (
    1500  # objects whose distances to each other are looked at for the number of groups
)
_SAME, _OTHER = 0.6, 1.0  # standard deviations: agrees, differs
_TELLING = 0.3  # standard deviations from the mean of all objects


@dataclass(frozen=True)
class Like:
    """One object, and how like the examples it is.

    Attributes
    ----------
    index : int
        Row of the features.
    score : float
        0 ... 1, roughly the probability that it is of the examples' kind.
    agrees, differs : tuple of str
        Names of the features that say so, the most telling first.
    reason : str
        The same in words, with values.
    """

    index: int
    score: float
    agrees: tuple[str, ...]
    differs: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Clusters:
    """Groups of objects, the largest first.

    Attributes
    ----------
    labels : ndarray of int, shape (object,)
        Group of each, 0 ... cluster - 1.
    membership : ndarray of float, shape (object, cluster)
        0 ... 1; rows add up to 1.
    distances : ndarray of float, shape (object, cluster)
        To the centres, in the space of components.
    reasons : tuple of str
        What each group is, in words.
    """

    labels: NDArray[np.int64]
    membership: Floats
    distances: Floats
    reasons: tuple[str, ...]

    def members(self, group: int) -> NDArray[np.int64]:
        """Objects of a group, the most typical first, the rarest last."""
        ours = np.flatnonzero(self.labels == group)
        return ours[np.argsort(self.distances[ours, group], kind="stable")]


def more_like(
    features: ArrayLike,
    chosen: Sequence[int],
    rejected: Sequence[int] = (),
    *,
    names: Sequence[str] | None = None,
) -> list[Like]:
    """Rank all other objects by their likeness to examples.

    The score is the density of the examples at an object over the density of all objects there
    (gaussian kernels in whitened principal components), one at the examples themselves: what
    learning from positive examples alone gives (Elkan and Noto 2008). Components in which the
    examples agree weigh more. Rejected examples take their share.

    Parameters
    ----------
    features : array of shape (object, feature)
        Finite. Those that are never negative are compared by their logarithms.
    chosen : sequence of int
        Objects that are examples, one or more.
    rejected : sequence of int
        Objects that are not wanted.
    names : sequence of str, optional
        Of the features, for the reasons.

    Returns
    -------
    list of Like
        All objects that are neither chosen nor rejected, the likest first; of equal scores the
        nearest to an example.

    Raises
    ------
    ValueError
        Without objects or examples, for features that are not finite, examples that do not exist,
        or one both chosen and rejected.
    """
    values, known = _checked(features, names)
    wanted, unwanted = sorted(set(chosen)), sorted(set(rejected))
    if not wanted:
        raise ValueError("likeness needs one example at least")
    for index in (*wanted, *unwanted):
        if not 0 <= index < len(values):
            raise ValueError(f"example {index}: there are objects 0 to {len(values) - 1}")
    both = sorted(set(wanted) & set(unwanted))
    if both:
        raise ValueError(f"object {both[0]} is both chosen and rejected")
    standard, columns = _standardised(values)
    places = _components(standard)
    score = _likeness(places, wanted, unwanted)
    away = cdist(places, places[wanted]).min(axis=1)
    others = [index for index in range(len(values)) if index not in {*wanted, *unwanted}]
    ranked = sorted(others, key=lambda index: (-score[index], away[index], index))
    telling = [known[column] for column in columns]
    return [
        _explained(index, float(score[index]), values[:, columns], standard, wanted, telling)
        for index in ranked
    ]


def cluster(
    features: ArrayLike,
    *,
    clusters: int | None = None,
    names: Sequence[str] | None = None,
    seed: int = 42,
) -> Clusters:
    """Group objects by what they look like.

    Parameters
    ----------
    features, names
        As for `more_like`.
    clusters : int, optional
        Number of groups; by default that of 2 to 6 with the largest mean silhouette (Rousseeuw
        1987). Never more than there are different objects.
    seed : int
        Of the starts of k-means; the same seed gives the same groups.

    Returns
    -------
    Clusters

    Raises
    ------
    ValueError
        Without objects, for features that are not finite, or fewer than one group.
    """
    values, known = _checked(features, names)
    if clusters is not None and clusters < 1:
        raise ValueError(f"clusters {clusters}: expected 1 or more")
    standard, columns = _standardised(values)
    places = _components(standard)
    different = len(np.unique(places, axis=0))
    if clusters is None:
        tried = range(2, min(_MOST_CLUSTERS, different - 1) + 1)
        made = [_kmeans(places, count, seed) for count in tried]
        centres = max(made, key=lambda one: _silhouette(places, one), default=places[:1])
        if not made:
            centres = places.mean(axis=0, keepdims=True)
    else:
        centres = _kmeans(places, min(clusters, different), seed)
    labels = vq(places, centres)[0]
    size = np.bincount(labels, minlength=len(centres))
    order = np.argsort(-size, kind="stable")
    distances = np.asarray(cdist(places, centres[order]), dtype=np.float64)
    labels = np.argsort(order)[labels]
    telling = [known[column] for column in columns]
    reasons = tuple(
        _group_in_words(labels == group, values[:, columns], standard, telling)
        for group in range(len(centres))
    )
    return Clusters(labels, _membership(distances), distances, reasons)


def _checked(features: ArrayLike, names: Sequence[str] | None) -> tuple[Floats, list[str]]:
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"features must have shape (object, feature), got {values.shape}")
    if not len(values):
        raise ValueError("there are no objects: nothing stands out in the map that was segmented")
    if not np.isfinite(values).all():
        raise ValueError("features must be finite")
    known = [f"feature {i}" for i in range(values.shape[1])] if names is None else list(names)
    if len(known) != values.shape[1]:
        raise ValueError(f"{len(known)} names for {values.shape[1]} features")
    return values, known


def _standardised(values: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Features with mean 0 and variance 1, and which these are: those that differ between objects."""
    usual = np.median(np.abs(values), axis=0)
    # Sizes and intensities differ by factors. A little is added so that nothing is not infinitely little.
    logs = np.log(np.maximum(values, 0) + np.where(usual > 0, 0.05 * usual, 1.0))
    taken = np.where((values >= 0).all(axis=0), logs, values)
    spread = taken.std(axis=0)
    columns = np.flatnonzero(spread > 1e-9 * (1 + np.abs(taken).max(axis=0)))
    return (taken - taken.mean(axis=0))[:, columns] / spread[columns], columns


def _components(standard: Floats) -> Floats:
    """Whitened principal components, as many as hold most of the variance; one of zeros for objects all the same."""
    if not standard.shape[1]:
        return np.zeros((len(standard), 1))
    _, size, axes = np.linalg.svd(standard, full_matrices=False)
    share = np.cumsum(size**2) / (size**2).sum()
    count = int(np.searchsorted(share, _KEPT)) + 1
    # The sign of a component is arbitrary, and nothing here depends on it.
    return (standard @ axes[:count].T) / (size[:count] / np.sqrt(len(standard)))


def _likeness(places: Floats, wanted: list[int], unwanted: list[int]) -> Floats:
    examples = places[wanted]
    around = ((examples - examples.mean(axis=0)) ** 2).sum(axis=0)
    spread = np.sqrt((_PRIOR + around) / (_PRIOR + len(wanted) - 1))
    scaled = places / (spread * _WIDTH)

    def density(of: NDArray[np.float64]) -> Floats:
        return np.exp(-cdist(scaled, of, "sqeuclidean") / 2).mean(axis=1)

    theirs, everywhere = density(scaled[wanted]), density(scaled)
    # Where there is nothing else an object would be likely of any kind: it is not for lying far off.
    ratio = theirs / np.maximum(everywhere, everywhere[wanted].mean())
    score = np.minimum(1.0, ratio / ratio[wanted].mean())
    if unwanted:
        against = density(scaled[unwanted])
        score = score * theirs / np.maximum(theirs + against, np.finfo(float).tiny)
    return score


def _kmeans(places: Floats, count: int, seed: int) -> Floats:
    """Centres of the best of several starts, each with centres far from each other (k-means++)."""
    if count < 2:
        return places.mean(axis=0, keepdims=True)  # scipy would take a single number for how many
    best, least = places[:1], np.inf
    for start in range(_STARTS):
        rng = np.random.default_rng([seed, start])
        centres = places[[rng.integers(len(places))]]
        while len(centres) < count:
            away = cdist(places, centres, "sqeuclidean").min(axis=1)
            centres = np.vstack([centres, places[rng.choice(len(places), p=away / away.sum())]])
        found, _ = kmeans(places, centres)
        # Its own distortion is that of the step before the last.
        distortion = float((cdist(places, found).min(axis=1) ** 2).sum())
        if len(found) >= count and distortion < least * (1 - 1e-12) or start == 0:
            best, least = found, distortion
    return best


def _silhouette(places: Floats, centres: Floats) -> float:
    step = -(-len(places) // _MOST_COMPARED)
    some = places[::step]
    labels = vq(some, centres)[0]
    groups = np.unique(labels)
    if len(groups) < 2:
        return -1.0
    away = cdist(some, some)
    inside = labels[:, None] == groups
    size = inside.sum(axis=0)
    mean = away @ inside / size
    own = np.searchsorted(groups, labels)
    index = np.arange(len(some))
    # Of the others of its own group: its distance to itself does not count.
    within = mean[index, own] * size[own] / np.maximum(size[own] - 1, 1)
    mean[index, own] = np.inf
    other = mean.min(axis=1)
    value = (other - within) / np.maximum(np.maximum(other, within), np.finfo(float).tiny)
    return float(np.where(size[own] > 1, value, 0.0).mean())


def _membership(distances: Floats) -> Floats:
    nearest = distances.min(axis=1, keepdims=True)
    # Relative to the nearest centre nothing overflows; at a centre the others get nothing.
    closeness = np.where(
        distances > 0, (nearest / np.where(distances > 0, distances, 1.0)) ** 2, 1.0
    )
    return closeness / closeness.sum(axis=1, keepdims=True)


def _explained(
    index: int, score: float, values: Floats, standard: Floats, wanted: list[int], names: list[str]
) -> Like:
    theirs, usual = np.median(values[wanted], axis=0), np.median(values, axis=0)
    centre = standard[wanted].mean(axis=0)
    apart = np.abs(standard[index] - centre)
    # What both have in common with everything else says nothing.
    order = np.argsort(apart - np.abs(centre), kind="stable")
    same = [int(i) for i in order if apart[i] <= _SAME and abs(centre[i]) > _TELLING][:3]
    other = [int(i) for i in np.argsort(-apart, kind="stable") if apart[i] > _OTHER][:2]
    parts = []
    if same:
        told = [f"{names[i]} {values[index, i]:.3g}" for i in same]
        beside = [f"{theirs[i]:.3g}" for i in same]
        all_of = [f"{usual[i]:.3g}" for i in same]
        parts.append(
            f"like them in {_listed(told)} (theirs {_listed(beside)}, usual {_listed(all_of)})"
        )
    if other:
        told = [f"{names[i]} {values[index, i]:.3g} (theirs {theirs[i]:.3g})" for i in other]
        parts.append(f"unlike in {_listed(told)}")
    return Like(
        index,
        score,
        tuple(names[i] for i in same),
        tuple(names[i] for i in other),
        "; ".join(parts) or "not unlike them in anything",
    )


def _group_in_words(
    inside: NDArray[np.bool_], values: Floats, standard: Floats, names: list[str]
) -> str:
    if not inside.any() or inside.all() or not names:
        return "all alike" if inside.all() else "none"
    centre = standard[inside].mean(axis=0)
    order = [
        int(i) for i in np.argsort(-np.abs(centre), kind="stable") if abs(centre[i]) > _TELLING
    ][:3]
    told = [
        f"{'high' if centre[i] > 0 else 'low'} {names[i]} "
        f"({np.median(values[inside, i]):.3g}, others {np.median(values[~inside, i]):.3g})"
        for i in order
    ]
    return _listed(told) or "near the mean in everything"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
