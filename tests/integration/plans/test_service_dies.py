"""A service that is killed outright, and another one that takes over. Last of its folder: no service is left."""

from collections.abc import Iterator
from typing import Any

import pytest

from inscan.callbacks.plans import coarse_to_fine, measure_proposal

pytestmark = pytest.mark.slow


@pytest.fixture
def last(microscope: Any) -> Iterator[Any]:
    """The microscope; whatever happens, no service is left."""
    try:
        yield microscope
    finally:
        microscope.close()


def test_a_service_that_is_killed_and_one_that_takes_over(last, survey, until):
    microscope = last
    name = microscope.approved(survey)
    done_one = []

    def fine(region: dict[str, Any], proposal: dict[str, Any]) -> Any:
        yield from microscope.names["fine"](region, proposal)
        if not done_one:
            done_one.append(region)
            microscope.kill()

    plan = measure_proposal(microscope.names["inscan"], microscope.still(name), fine)
    done = microscope.run(plan)
    # The scan in flight ends as if nothing were; without the service's word there is no next one.
    assert done.state == "failed" and len(done.regions) == 1 and len(done.runs) == 1
    assert "could not be confirmed" in done.reason
    assert microscope.stops[-1]["exit_status"] == "success"

    # A plan that waits does not mind: the outcome comes from the next service.
    running = microscope.begin(
        coarse_to_fine(
            microscope.names["survey"](step=1.0, dwell=0.1),
            microscope.names["inscan"],
            microscope.names["fine"],
            timeout=110,
        )
    )
    stops = len(microscope.stops)
    until(lambda: len(microscope.stops) == stops + 1)
    microscope.serve()
    result = running.join()
    assert result is not None, running.error
    assert len(result.fine_uids) >= 1, result.notes
    # What became of the first proposal waited for a service, too.
    told = until(
        lambda: microscope.proposal(name)["state"] == "failed" and microscope.proposal(name)
    )
    assert told["fine_uids"] == done.runs
