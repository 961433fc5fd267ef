"""Plans that wait for inscan's answer, and measure again where it says so.

Nothing here moves a motor on its own: motion comes from the plans that the caller gives, and only
for proposals that the service has approved and confirmed at that moment.
"""

from inscan.callbacks.plan_checks import Check
from inscan.callbacks.plan_coarse_to_fine import CoarseToFine, coarse_to_fine
from inscan.callbacks.plan_dwell import AdaptiveDwell, adaptive_dwell
from inscan.callbacks.plan_energies import SurveyThenEnergies, survey_then_energies
from inscan.callbacks.plan_measure import Measured, measure_proposal
from inscan.callbacks.plan_waiting import OutcomeTimeout, wait_for_outcome

__all__ = [
    "AdaptiveDwell",
    "Check",
    "CoarseToFine",
    "Measured",
    "OutcomeTimeout",
    "SurveyThenEnergies",
    "adaptive_dwell",
    "coarse_to_fine",
    "measure_proposal",
    "survey_then_energies",
    "wait_for_outcome",
]
