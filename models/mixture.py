"""Combine predictions by how well they foretell counts that none of them saw."""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_mixture"]

_RIDGE = 2.0  # units of squared held-out z: keeps answers that differ by nothing at equal weights
_LEAST = 0.06  # weights below this are not worth a pass of the network


def best_mixture(
    means: NDArray[np.floating], held: NDArray[np.floating], ridge: float = _RIDGE
) -> NDArray[np.float64]:
    """Weights of predictions whose mixture is closest to counts that none of them saw.

    Least squares over the pixels, each divided by its counting variance, with weights of 0 or more
    that add up to 1 (stacking: Wolpert, *Neural Networks* 5 (1992) 241; Breiman, *Machine Learning*
    24 (1996) 49). Every set of weights above 0 is tried, which is exact for so few.

    Parameters
    ----------
    means : ndarray of float, shape (prediction, row, col)
    held : ndarray of float, shape (row, col)
    ridge : float
        Pull towards equal weights.

    Returns
    -------
    ndarray of float64, shape (prediction,)
        Weights below a few percent are set to 0.
    """
    number = len(means)
    if number == 1:
        return np.ones(1)
    base = means.mean(axis=0)
    root = np.sqrt(np.maximum(base, 0.02))
    apart = ((means - base) / root).reshape(number, -1)
    gram = apart @ apart.T + ridge * np.eye(number)
    aim = apart @ ((held - base) / root).ravel() + ridge / number
    best, lowest = np.full(number, 1.0 / number), np.inf
    for size in range(1, number + 1):
        for chosen in combinations(range(number), size):
            at = np.array(chosen)
            system = np.zeros((size + 1, size + 1))
            system[:size, :size] = gram[np.ix_(at, at)]
            system[size, :size] = system[:size, size] = 1.0
            part = np.linalg.solve(system, np.append(aim[at], 1.0))[:size]
            cost = float(0.5 * part @ gram[np.ix_(at, at)] @ part - part @ aim[at])
            if part.min() >= 0 and cost < lowest:
                best, lowest = np.zeros(number), cost
                best[at] = part
    best[best < _LEAST] = 0.0
    return best / best.sum()
