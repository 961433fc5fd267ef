"""Whether a proposal may still be measured: age, mode, state of the beamline, limits, budgets; asked at every step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inscan.callbacks.profile import BeamlineProfile, matches
from inscan.callbacks.rescan_section import Rescan
from inscan.service.journal import Journal
from inscan.service.proposal import Mode, Refusal
from inscan.service.rescan_context import context_changes, context_of
from inscan.service.rescan_limits import (
    Spent,
    budget_refusal,
    range_refusal,
    shift_refusal,
    spent_by,
    with_region,
)

OPEN = ("suggested", "approved", "queued")
"""States of a proposal that nobody has taken yet."""
_RECENT = 50


class NotAllowed(ValueError):
    """A change of state that a rule forbids; the message names the rule."""


def wrong_state(proposal: Mapping[str, Any], state: str, expected: Sequence[str]) -> NotAllowed:
    """That a proposal cannot become what it should, from the state in which it is."""
    return NotAllowed(
        f"state: proposal {proposal['id'][:13]} is {proposal['state']} "
        f"({proposal['who']}: {proposal['reason'] or 'no reason'}); "
        f"it would have to be {' or '.join(expected)} to become {state}"
    )


class Validity:
    """What stands against a proposal, for any thread. Every method raises `NotAllowed` with the rule, or returns.

    Parameters
    ----------
    journal : Journal
    profiles : mapping of str to BeamlineProfile
    mode : str or None
        Overrides the mode of every profile.
    now : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        journal: Journal,
        profiles: Mapping[str, BeamlineProfile],
        mode: Mode | None,
        now: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._profiles = profiles
        self._mode: Mode | None = mode
        self._now = now

    def profile(self, proposal: Mapping[str, Any]) -> BeamlineProfile:
        """The profile whose limits hold for a proposal."""
        name = str(proposal.get("profile"))
        if name not in self._profiles:
            raise NotAllowed(
                f"profile: {name!r} is none of this service's ({', '.join(self._profiles) or 'it has none'}), "
                "so that no limits are known"
            )
        return self._profiles[name]

    def rules(self, proposal: Mapping[str, Any]) -> Rescan:
        """The rules as they are now."""
        return self.profile(proposal).rescan

    def mode(self, proposal: Mapping[str, Any]) -> Mode:
        """The mode as it is now."""
        return self._mode or self.rules(proposal).mode

    def allowed(self, proposal: Mapping[str, Any]) -> None:
        """The mode lets places be measured again at all."""
        mode = self.mode(proposal)
        if mode == "suggest":
            raise NotAllowed(
                "mode: rescan.mode is suggest, regions are only shown; set it to approve in the profile"
            )
        if mode == "off":
            raise NotAllowed("mode: rescan.mode is off")

    def too_old(self, proposal: Mapping[str, Any]) -> str:
        """Why a proposal that nobody has taken is closed; empty: it is not."""
        if not self._now() > float(proposal.get("expires") or float("inf")):
            return ""
        known = self._profiles.get(str(proposal.get("profile")))
        after = "" if known is None else f" within {_span(known.rescan.expires)}"
        return f"expired: nobody took it{after}"

    def unchanged(
        self, proposal: Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> None:
        """The beamline is in the state in which the proposal was made.

        Parameters
        ----------
        context : mapping or None
            The state as whoever asks knows it, dotted paths to values; compared besides what later runs told.
        """
        rules, then = self.rules(proposal), proposal.get("context") or {}
        changes = context_changes(rules, then, context or {})
        for start, baseline in [] if changes else self._later(proposal):
            changes = changes or context_changes(
                rules, then, context_of(rules.context, start, baseline)
            )
        if changes:
            raise NotAllowed(_named(changes[0]))

    def affordable(self, proposal: Mapping[str, Any]) -> None:
        """All that is left of a proposal stays within limits and budgets, with all else of its survey."""
        spent, rules = self._spent(proposal), self.rules(proposal)
        if proposal.get("kind", "map") == "energies":
            self._energies(proposal, rules, spent)
            return
        for region in left_of(proposal):
            self.region(proposal, region, spent=spent)
            spent = with_region(spent, region)

    def region(
        self,
        proposal: Mapping[str, Any],
        region: Mapping[str, Any],
        *,
        shift: Sequence[float] | None = None,
        context: Mapping[str, Any] | None = None,
        spent: Spent | None = None,
        counted: bool = False,
    ) -> None:
        """One region, moved by a drift, stays within limits and budgets.

        Parameters
        ----------
        shift : (float, float) or None
            To be added to it, slow and fast, motor units.
        context : mapping or None
            May hold the motors' present positions: the way to the region counts.
        spent : Spent or None
            By all else of the survey; None: as the journal has it.
        counted : bool
            It is noted as begun already: budgets have it.
        """
        rules, label = self.rules(proposal), str(region["label"])
        drift = (0.0, 0.0) if shift is None else (float(shift[0]), float(shift[1]))
        found = shift_refusal(rules, drift, proposal.get("survey_step") or (0.0, 0.0), label)
        for axis, name in enumerate(("slow_range", "fast_range")):
            low, high = (float(edge) + drift[axis] for edge in region[name])
            motor, units = proposal["motors"][axis], proposal["units"][axis]
            step = max(abs(float(proposal["step"][axis])), abs(float(region["step"][axis])))
            at = (context or {}).get(motor)
            at = float(at) if isinstance(at, int | float) and not isinstance(at, bool) else None
            found = found or range_refusal(rules, motor, units, low, high, step, label, position=at)
        if not counted:
            found = found or budget_refusal(
                rules,
                self._spent(proposal) if spent is None else spent,
                time_s=float(region["time_s"]),
                exposure_s=float(region["exposure_s"]),
                area_um2=float(region["area_um2"]),
                dose=float(region["dose"]),
                label=label,
                place=_place(region),
            )
        if found is not None:
            raise NotAllowed(_named(found))

    def _energies(self, proposal: Mapping[str, Any], rules: Rescan, spent: Spent) -> None:
        found = None
        motor, energies = (proposal.get("motors") or [""])[0], proposal.get("energies_ev")
        if motor and energies:
            found = range_refusal(rules, motor, "eV", min(energies), max(energies), 0.0)
        found = found or budget_refusal(
            rules,
            spent,
            time_s=float(proposal.get("time_s") or 0.0),
            exposure_s=float(proposal.get("exposure_s") or 0.0),
            area_um2=float(proposal.get("area_um2") or 0.0),
            dose=float(proposal.get("dose") or 0.0),
            regions=0,
        )
        if found is not None:
            raise NotAllowed(_named(found))

    def _spent(self, proposal: Mapping[str, Any]) -> Spent:
        """By all else of the survey, and by what of this one was begun already."""
        survey_uid = str(proposal.get("survey_uid") or proposal["run_uid"])
        return spent_by(
            {**one, "state": "done"} if one["id"] == proposal["id"] else one
            for one in self._journal.proposals(survey_uid=survey_uid)
        )

    def _later(
        self, proposal: Mapping[str, Any]
    ) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Start documents and baselines of the beamline's runs after the survey, newest first; rescans of it agree with
        it anyway."""
        profile = self.profile(proposal)
        survey = self._journal.run(str(proposal.get("survey_uid") or proposal["run_uid"]))
        if survey is None:
            return []
        return [
            (run["start"], self._journal.baseline(run["run_uid"]))
            for run in self._journal.runs(limit=_RECENT)
            if run["created"] > survey["created"] and matches(profile, run["start"])
        ]


def _span(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def left_of(proposal: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Regions of a proposal that were not measured yet."""
    covered = set(proposal.get("covered") or ())
    return [one for one in proposal["regions"] if str(one["label"]) not in covered]


def _place(region: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    slow, fast = region["slow_range"], region["fast_range"]
    return (float(slow[0]), float(slow[1])), (float(fast[0]), float(fast[1]))


def _named(refusal: Refusal) -> str:
    return f"{refusal.rule}: {refusal.text}"
