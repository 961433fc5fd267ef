"""`torture_worker.py` as on another machine: `python far_worker.py SPOOL ADDRESS [OPTIONS]`.

It sees none of the service's files, and reaches the spool server at an address of ours (a proxy) instead of the one
that the broker names.
"""

import sys
from typing import Any
from unittest import mock

import torture_worker

from inscan.service import transfer, worker_job


def main() -> None:
    spool = sys.argv.pop(1)
    fetch, put = transfer.fetch, transfer.put

    def fetch_there(address: str, *given: Any, **named: Any) -> Any:
        return fetch(spool, *given, **named)

    def put_there(address: str, *given: Any, **named: Any) -> None:
        put(spool, *given, **named)

    with (
        # The one thing that tells a worker of another machine: its host's name for itself.
        mock.patch.object(worker_job, "host_id", lambda: "elsewhere"),
        mock.patch.object(transfer, "fetch", fetch_there),
        mock.patch.object(transfer, "put", put_there),
    ):
        torture_worker.main()


if __name__ == "__main__":
    main()
