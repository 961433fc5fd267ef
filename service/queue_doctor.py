"""What `inscan doctor` says of a queue server. Changes nothing there."""

from collections.abc import Sequence

from inscan.service.queue_client import QueueClient, QueueRefused
from inscan.service.settings import QueueServerSettings


def look(settings: QueueServerSettings, plans: Sequence[str]) -> tuple[str, str]:
    """Ask a queue server whether it could take rescans now.

    Parameters
    ----------
    settings : QueueServerSettings
    plans : sequence of str
        Plans that would be added.

    Returns
    -------
    (str, str)
        What was found, and what to do about it; empty when there is nothing to be done.

    Raises
    ------
    QueueUnavailable
        When it does not answer, or the package to ask it is not installed.
    """
    client = QueueClient(settings)
    try:
        manager = client.manager()
        waiting, _ = client.queue()
        environment = "open" if manager.environment else "closed"
        told = [
            f"{settings.control}: {manager.state}, environment {environment}, {len(waiting)} items",
            manager.lock,
        ]
        if away := settings.beyond_loopback:
            key = "encrypted" if settings.public_key else "not encrypted"
            told.append(f"not on this machine: {', '.join(away)}, its commands {key}")
        detail = "; ".join(part for part in told if part)
        if not manager.environment:
            return detail, "open it, plans are known only then: qserver environment open"
        try:
            missing = [plan for plan in plans if not client.allows(manager, plan)]
        except QueueRefused as error:
            return f"{detail}; {error}", "set `queueserver.user_group` to a group that it has"
        if missing:
            return (
                f"{detail}; not allowed to group {settings.user_group}: {', '.join(missing)}",
                "allow it in user_group_permissions.yaml of its startup folder, or name another in rescan.plan",
            )
        return detail, ""
    finally:
        client.close()
