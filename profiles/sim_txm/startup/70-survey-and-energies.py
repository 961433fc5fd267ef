# ruff: noqa: F821 - names come from earlier files of this folder
"""The whole loop as one plan: few energies first, then those that matter."""

from bluesky.utils import MsgGenerator

from inscan.callbacks.plans import survey_then_energies


def survey_and_energies(
    count: int = 12,
    frames_per_energy: int = 2,
    exposure: float = 0.0,
    timeout: float = 300.0,
    approval_timeout: float = 0.0,
) -> MsgGenerator:
    """Take a stack of few energies, wait for inscan, add the energies that it proposes, as long as it proposes any.

    Parameters
    ----------
    count, frames_per_energy, exposure
        Of the survey, see `survey`; added energies get as many frames and the exposure that is proposed.
    timeout
        Seconds to wait for each answer; without one nothing moves.
    approval_timeout
        Seconds to wait for a person's approval, where the profile asks for one.
    """
    factor = exposure / parameters.dwell if exposure else 1.0

    def more(energies_ev, proposal):
        seconds = factor * parameters.dwell * float(proposal.get("exposure_factor") or 1.0)
        return more_energies(energies_ev, proposal, frames_per_energy, seconds)

    return (
        yield from survey_then_energies(
            survey(count, frames_per_energy, exposure),
            inscan,
            more,
            timeout=timeout,
            approval_timeout=approval_timeout,
            context=lambda: {"sample": {"name": sample_name}},
        )
    )
