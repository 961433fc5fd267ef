"""What a region is worth: the information that measuring it again is expected to give, per second and per dose.

The measure is that of experimental design after Lindley (1956) and MacKay (1992, "Information-based objective
functions for active data selection"): the expected drop of entropy, in nats. A survey pixel holds n fine pixels. Its
line is known to a relative standard deviation r. The survey's own photons tell, per survey dose, the Fisher information
q = s^2 / (s + b) about the logarithm of the signal, from s counts of signal on b of background (Poisson). A rescan of D
survey doses adds q D to what is known of the pixel's mean, and gives each fine pixel q D / n. Within the pixel nothing
is known but the mean; the least that this says of a part of it is an exponential distribution (largest entropy of
positive numbers with a given mean), whose relative variance is 1. With gaussian channels of these signal-to-noise
ratios, one for the mean and n - 1 for what deviates from it,

    information = pixels / 2 * (ln(1 + r^2 q D) + (n - 1) ln(1 + q D / n))    nats.

Worth is this over the time, all overheads included, and over the exposure that the place has in the end, 1 + D.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LIKE_THE_SURVEY = 1.0
"""Fisher information per pixel where nothing is told of it: one count."""
_LEAST = 1e-6  # of a relative uncertainty, and of a Fisher information


@dataclass(frozen=True)
class Light:
    """What a survey's result tells of a line in a box.

    Attributes
    ----------
    line : str
        Its name; several that are searched as one are joined by `+`.
    signal, background : float or None
        Mean counts per survey pixel of one survey dose; None where only the uncertainty is known.
    sigma : float
        Relative standard deviation of a pixel's value as it is known now.
    fisher : float
        Information of one survey dose about the logarithm of a pixel's signal.
    doses : float
        Survey doses that went into `sigma`.
    """

    line: str
    signal: float | None
    background: float | None
    sigma: float
    fisher: float
    doses: float = 1.0

    @property
    def typical(self) -> float:
        """Information of one survey dose for the pixel that `sigma` is of: it may be fainter than the mean of its
        place, and a denoiser knows more of it than its own photons tell."""
        return min(self.fisher, 1 / (self.sigma**2 * self.doses))

    def sigma_after(self, dose: float) -> float:
        """Relative standard deviation of a pixel's value after so many survey doses more."""
        return 1 / math.sqrt(1 / self.sigma**2 + self.typical * dose)

    def dose_for(self, share: float) -> float:
        """Survey doses that it takes until the relative standard deviation is `share`; 0 when it is already."""
        return max(0.0, (1 / share**2 - 1 / self.sigma**2) / self.typical)

    def information(self, *, pixels: float, per_pixel: float, dose: float) -> float:
        """Expected gain, in nats; see the module.

        Parameters
        ----------
        pixels : float
            Survey pixels in the region.
        per_pixel : float
            Fine pixels in one of them.
        dose : float
            Exposure per area, in survey doses.
        """
        mean = math.log1p(self.sigma**2 * self.fisher * dose)
        detail = max(0.0, per_pixel - 1) * math.log1p(self.fisher * dose / max(1.0, per_pixel))
        return pixels / 2 * (mean + detail)


def light_of(region: Mapping[str, Any], *, doses: float = 1.0) -> Light:
    """What is known of the line that a region was found in.

    Parameters
    ----------
    region : mapping
        As a worker gives it: `element_name`, and per line `light`, `background` and `relative_sigma`, as far as known.
    doses : float
        Survey doses that went into what is known: 1 for a survey, more for a composite of it and fine runs.

    Returns
    -------
    Light
        Of the region's line; where its name is none (doubt, several lines), of the line that is known worst for
        doubt and precision, of the brightest otherwise. Where no counts are given, the uncertainty tells; where there
        is none either, the score does (half the square of a signal-to-noise ratio), else `LIKE_THE_SURVEY`.
    """
    light, under, sigmas = (
        _numbers(region.get(name)) for name in ("light", "background", "relative_sigma")
    )
    wanted = _numbers(region.get("wanted"))
    name = str(region.get("element_name") or "")
    parts = [part for part in name.split("+") if part in light or part in sigmas]
    if parts and len(parts) == name.count("+") + 1:
        return _joined(region, parts, light, under, sigmas, doses)
    lines = sorted(set(light) | set(sigmas))
    among = [line for line in lines if line in wanted] or lines
    if not among:
        return _by_score(region, name, doses)
    each = [_joined(region, [line], light, under, sigmas, doses) for line in among]
    if region.get("target") in ("doubt", "precision"):
        return max(each, key=lambda one: one.sigma)
    return max(each, key=lambda one: one.fisher)


def _joined(
    region: Mapping[str, Any],
    lines: list[str],
    light: Mapping[str, float],
    under: Mapping[str, float],
    sigmas: Mapping[str, float],
    doses: float,
) -> Light:
    name = "+".join(lines)
    counted = all(line in light for line in lines)
    known = [sigmas[line] for line in lines if sigmas.get(line, 0.0) > 0]
    sigma = min(known, default=None)
    if not counted:
        if sigma is None:
            return _by_score(region, name, doses)
        return _light(name, None, None, sigma, 1 / (max(sigma, _LEAST) ** 2 * doses), doses)
    total = sum(light[line] for line in lines) / doses
    background = min(sum(under.get(line, 0.0) for line in lines) / doses, total)
    signal = total - background
    if not signal > 0:
        # Nothing above its surroundings: a tenth of what noise would hide.
        signal = math.sqrt(max(total, 1.0)) / 10
    fisher = max(signal * (signal / (signal + background)), _LEAST)
    if sigma is None:
        sigma = min(1.0, 1 / math.sqrt(fisher * doses))
    return _light(name, signal, background, sigma, fisher, doses)


def _light(
    name: str,
    signal: float | None,
    background: float | None,
    sigma: float,
    fisher: float,
    doses: float,
) -> Light:
    """What a worker says may be anything; nothing of it divides by zero or overflows."""
    most = 1 / _LEAST**2
    sigma, fisher = (min(max(one, _LEAST), most) for one in (sigma, fisher))
    return Light(name, signal, background, sigma, fisher, doses)


def _by_score(region: Mapping[str, Any], name: str, doses: float) -> Light:
    fisher = LIKE_THE_SURVEY
    if region.get("target", "spots") in ("spots", "like"):
        row0, row1, col0, col1 = (int(edge) for edge in region["box"])
        score = float(region.get("score") or 0.0)
        if score > 0 and math.isfinite(score):
            fisher = 2 * score / ((row1 - row0) * (col1 - col0)) / doses
    fisher = max(fisher, _LEAST)
    return _light(name, None, None, min(1.0, 1 / math.sqrt(fisher * doses)), fisher, doses)


def worth_of(information: float, time_s: float, dose: float) -> float:
    """Nats per second and per exposure that the place has in the end, in survey doses."""
    return information / max(time_s, 1e-9) / (1 + dose)


def wanted_of(
    region: Mapping[str, Any], precision: Mapping[str, float], line: str
) -> dict[str, float]:
    """Relative uncertainties that are asked for in a region, per line; empty where none is.

    Parameters
    ----------
    precision : mapping of str to float
        What the survey, or else the profile, asks for.
    line : str
        The region's line (`Light.line`).
    """
    own = {name: share for name, share in _numbers(region.get("wanted")).items() if 0 < share <= 1}
    if own:
        return own
    return {name: precision[name] for name in line.split("+") if name in precision}


def _numbers(mapping: Any) -> dict[str, float]:
    """Finite numbers, none negative, of what a worker says; it may say anything."""
    if not isinstance(mapping, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in mapping.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 <= value < 1e15
    }
