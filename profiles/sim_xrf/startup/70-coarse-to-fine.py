# ruff: noqa: F821 - names come from earlier files of this folder
"""The whole loop as one plan, until regions are measured or until a map is precise; and a plan for the queue."""

from bluesky.suspenders import SuspendBoolLow, SuspendFloor
from bluesky.utils import MsgGenerator

from inscan.callbacks.plans import Check, adaptive_dwell, coarse_to_fine, measure_proposal

LEAST_CURRENT_MA = 100.0

# Without beam there is nothing to measure: regions are not begun, and a fine map waits.
_rules = {
    "checks": [
        Check(shutter, equals=1, words="the shutter is open"),
        Check(ring_current, low=LEAST_CURRENT_MA, words="there is beam in the ring"),
    ],
    "suspenders": [SuspendBoolLow(shutter), SuspendFloor(ring_current, LEAST_CURRENT_MA)],
    "context": lambda: {"scan.energy": xs_fly.incident_energy, "sample": {"name": sample_name}},
}


def survey_and_fine(
    step: float = 0.5, dwell: float = 0.0, timeout: float = 300.0, approval_timeout: float = 0.0
) -> MsgGenerator:
    """Survey, wait for inscan, map the regions that it proposes.

    Parameters
    ----------
    step, dwell
        Of the survey, see `survey`.
    timeout
        Seconds to wait for an answer; without one nothing moves after the survey.
    approval_timeout
        Seconds to wait for a person's approval, where the profile asks for one.
    """
    return (
        yield from coarse_to_fine(
            survey(step, dwell),
            inscan,
            fine,
            timeout=timeout,
            approval_timeout=approval_timeout,
            **_rules,
        )
    )


def until_precise(
    precision: dict[str, float] = {"Fe_K": 0.1},  # noqa: B006 - never changed; plain for queueserver
    budget_s: float = 600.0,
    step: float = 0.5,
    dwell: float = 0.0,
    timeout: float = 300.0,
    max_rounds: int = 4,
) -> MsgGenerator:
    """Survey, then measure again where the relative uncertainty of a line is above what is asked for.

    Parameters
    ----------
    precision
        Relative uncertainty per line: 0.1 asks for 10 %.
    budget_s
        Seconds that may be spent after the survey.
    step, dwell
        Of the survey, see `survey`.
    timeout
        Seconds to wait for each answer; without one nothing moves.
    max_rounds
        How often regions are measured at most.
    """
    return (
        yield from adaptive_dwell(
            survey(step, dwell),
            inscan,
            fine,
            precision=precision,
            budget_s=budget_s,
            timeout=timeout,
            max_rounds=max_rounds,
            **_rules,
        )
    )


def inscan_rescan(proposal: str, timeout: float = 300.0) -> MsgGenerator:
    """Map the regions of a proposal: what inscan puts into the queue.

    Parameters
    ----------
    proposal
        Its id.
    timeout
        Seconds to wait for the composite of survey and fine maps, where a drift is followed.

    Raises
    ------
    RuntimeError
        A device failed, so that the queue stops. A refusal is none: the queue goes on.
    """
    done = yield from measure_proposal(inscan, proposal, fine, timeout=timeout, **_rules)
    if done.failure:
        raise RuntimeError(f"proposal {proposal}: {done.failure}")
    return done
