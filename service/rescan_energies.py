"""Which energies may be added to a survey of few: limits, budgets and rounds, as `inscan.service.rescan` for regions.

A pure function of the stack, its result, the profile and what is known besides. The field stays where it is, so that
limits of area and of the number of regions do not apply; a refusal names its rule, the limit and the value.
"""

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from inscan.callbacks.profile import BeamlineProfile, start_value
from inscan.callbacks.rescan_section import EnergyRescan, Rescan
from inscan.service.messages import NAMESPACE, InferenceJob, InferenceResult, derived_uid
from inscan.service.proposal import Mode, Refusal, RescanProposal
from inscan.service.rescan_context import context_of
from inscan.service.rescan_limits import Spent, budget_refusal, range_refusal, round_refusal
from inscan.service.rescan_places import chemistry_places
from inscan.service.rescan_refused import REPLAYED, blocked, refused
from inscan.service.rescan_regions import Known

__all__ = ["propose_energies"]

_SURVEYS = ("survey", "composite")
_LEAST_ROUND = 4
_MOST_ENERGIES = 1000
"""Energies of one report that are looked at."""


def propose_energies(
    job: InferenceJob,
    result: InferenceResult,
    profile: BeamlineProfile,
    start: Mapping[str, Any],
    mode: Mode,
    known: Known,
) -> RescanProposal | None:
    """Make of the energies that a result names those that may be added.

    Parameters
    ----------
    job : InferenceJob
        Of an energy stack; its `meta` has energies (eV) and dwell (s).
    result : InferenceResult
        Its report names energies, see `inscan.service.recipe_energies`.
    profile : BeamlineProfile
        Limits in `rescan`, the candidates in `rescan.energies`.
    start : mapping
        The survey's start document.
    mode : str
        Not `off`.
    known : Known
        What was proposed and spent before.

    Returns
    -------
    RescanProposal or None
        Of kind `energies`; `motors` and `units` name the monochromator and eV. Its `regions` are places of other
        chemistry (`inscan.service.rescan_places`), which cost nothing unless a plan goes there. None where the
        profile adds no energies, or the run is no survey. While rounds are left, it holds half of what would
        be needed (four at least): the next choice knows more. State `refused` says why nothing is proposed although it
        might have been; rule `energies.precision_ev`: the precision asked for is reached.
    """
    rules, spent, wanted = profile.rescan, known.spent, profile.rescan.energies
    named = result.report.get("energies")
    if wanted is None or profile.txm is None or not isinstance(named, Mapping):
        return None
    if job.meta.get("purpose") not in _SURVEYS:
        return None
    energies = [float(one) for one in list(named.get("energies_ev") or ())[:_MOST_ENERGIES]]
    base = RescanProposal(
        id=str(uuid.uuid5(NAMESPACE, f"{job.key}/rescan")),
        run_uid=job.run_uid,
        result_uid=derived_uid(job.key),
        mode=mode,
        state="refused",
        reason="",
        context=context_of(rules.context, start) if known.context is None else known.context,
        kind="energies",
        survey_uid=known.survey_uid or job.run_uid,
        round=known.round,
        motors=(profile.txm.energy or "", ""),
        units=("eV", ""),
        exposure_factor=rules.dwell_factor,
        retries=rules.retries,
    )
    survey = job.meta if known.survey is None else known.survey
    cost = _Cost(rules, wanted, profile.txm.frames, start, survey)
    # The job of a composite tells of the survey; only its result has the energies of all runs.
    held = result.report.get("energies_ev") or job.meta.get("energies_ev") or ()
    added = max(0, len(held) - cost.survey_energies)
    refusal = (
        blocked(result)
        or _none(named, wanted)
        or round_refusal(rules, known.round)
        or _unknown(base.motors[0], cost)
        or _most(wanted, added)
    )
    if refusal is not None:
        return refused(base, refusal)
    # What is in the stack was paid for, whatever is noted of it.
    spent = replace(
        spent,
        time_s=max(spent.time_s, cost.time_s(added)),
        exposure_s=max(spent.exposure_s, cost.exposure_s(added)),
        dose=max(spent.dose, cost.dose(added)),
    )
    kept, dropped = _within(rules, base.motors[0], energies)
    kept = kept[: wanted.most - added]
    if known.round < rules.max_rounds:
        kept = kept[: max(_LEAST_ROUND, math.ceil(len(kept) / 2))]
    while kept and (refusal := cost.refusal(spent, len(kept))) is not None:
        # They come with the most helpful first.
        kept.pop()
        dropped = [*[one for one in dropped if one.rule != refusal.rule], refusal]
    if not kept:
        return refused(base, dropped[0], dropped=tuple(dropped))
    places, unknown = chemistry_places(result.regions, job.meta, rules)
    described = replace(
        base,
        energies_ev=tuple(sorted(kept)),
        regions=tuple(places),
        dropped=(*dropped, *unknown),
        dwell=cost.dwell * rules.dwell_factor,
        dose=cost.dose(len(kept)),
        energies_time_s=cost.time_s(len(kept)),
        energies_exposure_s=cost.exposure_s(len(kept)),
    )
    if start.get("replay_of"):
        return refused(described, REPLAYED, dropped=(*described.dropped, REPLAYED))
    reason = f"{len(kept)} of {len(energies)} energies, within all limits; {named.get('text', '')}"
    if mode == "auto":
        reason += "; mode auto: no approval needed"
    return replace(described, state="approved" if mode == "auto" else "suggested", reason=reason)


class _Cost:
    """What energies cost, in the survey's terms.

    Parameters
    ----------
    frames : str or None
        Path of the number of frames per energy in the start document; one where nothing says it.
    survey : mapping
        Meta of the survey's job.
    """

    def __init__(
        self,
        rules: Rescan,
        wanted: EnergyRescan,
        frames: str | None,
        start: Mapping[str, Any],
        survey: Mapping[str, Any],
    ) -> None:
        self._rules, self._overhead = rules, wanted.frame_overhead
        self.dwell = float(survey.get("dwell") or 0.0)
        self.survey_energies = len(survey.get("energies_ev") or ())
        count = None if frames is None else start_value(start, frames)
        images = float(count) if isinstance(count, int | float) else 1.0
        self._exposure = max(images, 1.0) * self.dwell * rules.dwell_factor

    def exposure_s(self, energies: int) -> float:
        """Exposure of the sample, s."""
        return energies * self._exposure

    def time_s(self, energies: int) -> float:
        """Predicted duration, s."""
        return energies * (self._exposure + self._overhead)

    def dose(self, energies: int) -> float:
        """Exposure in that of the survey."""
        return energies * self._rules.dwell_factor / max(self.survey_energies, 1)

    def refusal(self, spent: Spent, energies: int) -> Refusal | None:
        """Whether so many more stay within the survey's budgets."""
        return budget_refusal(
            self._rules,
            spent,
            time_s=self.time_s(energies),
            exposure_s=self.exposure_s(energies),
            area_um2=0.0,
            dose=self.dose(energies),
            regions=0,
        )


def _within(
    rules: Rescan, motor: str, energies: Sequence[float]
) -> tuple[list[float], list[Refusal]]:
    """Energies that the monochromator may be sent to, and why not the others, once per limit."""
    kept: list[float] = []
    refused: dict[float | None, Refusal] = {}
    for energy in energies:
        refusal = range_refusal(rules, motor, "eV", energy, energy, 0.0)
        if refusal is None:
            kept.append(energy)
        else:
            refused.setdefault(refusal.limit, refusal)
    return kept, list(refused.values())


def _none(named: Mapping[str, Any], wanted: EnergyRescan) -> Refusal | None:
    if named.get("energies_ev"):
        return None
    text = str(named.get("text") or "the result names none")
    predicted = named.get("predicted") or {}
    errors = predicted.get("edge_sigma_ev") or [None]
    rule = "energies.precision_ev" if predicted.get("reached") else "energies"
    return Refusal(rule, text, wanted.precision_ev, errors[-1], "eV")


def _unknown(motor: str, cost: _Cost) -> Refusal | None:
    if not motor:
        text = "the profile names no monochromator, so that no soft limits hold; set txm.energy"
        return Refusal("soft_limits", text)
    if not cost.dwell > 0:
        text = "the survey's exposure is unknown, so that time and dose cannot be predicted; set txm.dwell"
        return Refusal("dwell", text)
    return None


def _most(wanted: EnergyRescan, added: int) -> Refusal | None:
    if added < wanted.most:
        return None
    text = f"{added} energies were added to this survey, {wanted.most} are allowed"
    return Refusal("energies.most", text, wanted.most, added, "energies")
