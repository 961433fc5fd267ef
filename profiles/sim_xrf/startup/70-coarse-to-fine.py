# ruff: noqa: F821 - names come from earlier files of this folder
"""The whole loop as one plan."""

from inscan.callbacks.plans import coarse_to_fine


def survey_and_fine(step: float = 0.5, dwell: float = 0.0, timeout: float = 300.0):
    """Survey, wait for inscan, map the regions that it proposes.

    Parameters
    ----------
    step, dwell
        Of the survey, see `survey`.
    timeout
        Seconds to wait for an answer; without one nothing moves after the survey.
    """
    return (yield from coarse_to_fine(survey(step, dwell), inscan, fine, timeout=timeout))
