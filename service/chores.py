"""What the service does every now and then: one chore that fails must end neither the service nor the other chores."""

import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Chores:
    """Does chores, and remembers which of them fail; used by one thread, read by any."""

    def __init__(self) -> None:
        self._troubles: dict[str, str] = {}

    @property
    def troubles(self) -> dict[str, str]:
        """Why chores failed when they were last done, by name."""
        return dict(self._troubles)

    def do(self, name: str, chore: Callable[[], object]) -> None:
        """Do one; what it raises is logged, once as long as it stays the same."""
        try:
            chore()
        except Exception as error:  # noqa: BLE001 - a full or read-only disk passes; a defect in one is not the others'
            text = f"{type(error).__name__}: {error}"
            if self._troubles.get(name) != text:
                passing = isinstance(error, OSError)
                _log.log(
                    logging.WARNING if passing else logging.ERROR,
                    "looking after %s: %s; tried again",
                    name,
                    text,
                    exc_info=None if passing else error,
                )
            self._troubles = {**self._troubles, name: text}
            return
        if name in self._troubles:
            _log.info("looking after %s: done again", name)
            self._troubles = {k: v for k, v in self._troubles.items() if k != name}
