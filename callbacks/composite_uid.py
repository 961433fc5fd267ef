"""The name of the composite of a survey and its fine runs: known to a plan before anybody has made it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

__all__ = ["composite_uid"]

_NAMESPACE = uuid.UUID("0d0e3f0a-59a1-5c4e-9a0e-6f5c2f7e4b11")
"""Never to be changed: a repeated request would make a second composite."""


def composite_uid(survey_uid: str, fine_uids: Iterable[str]) -> str:
    """Return the uid under which the composite of these runs has its outcome.

    Parameters
    ----------
    survey_uid
        Uid of the survey run.
    fine_uids
        Uids of the fine runs, in any order.
    """
    return str(uuid.uuid5(_NAMESPACE, "/".join([survey_uid, *sorted(set(fine_uids))])))
