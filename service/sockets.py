"""ROUTER sockets of the service, all with the same bounds."""

import zmq


def bind_router(
    context: zmq.Context, address: str, setting: str, *, max_message: int
) -> tuple[zmq.Socket, str]:
    """Listen at an address.

    Parameters
    ----------
    setting : str
        Which setting the address comes from, for the error.
    max_message : int
        Longest frame in bytes; a peer that sends more is cut off before it is stored.

    Returns
    -------
    (Socket, str)
        And the address with its real port.

    Raises
    ------
    OSError
        When it is in use, or none of this machine.
    """
    sock = context.socket(zmq.ROUTER)
    # Without MANDATORY a ROUTER drops in silence what it cannot deliver.
    sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, 1000)
    sock.setsockopt(zmq.RCVHWM, 1000)
    sock.setsockopt(zmq.MAXMSGSIZE, max_message)
    sock.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)
    try:
        sock.bind(address)
    except zmq.ZMQError as error:
        sock.close(linger=0)
        why = (
            "another program listens there (another inscan? `inscan status` tells)"
            if error.errno == zmq.EADDRINUSE
            else str(error)
        )
        raise OSError(
            error.errno,
            f"cannot listen at {address}: {why}; set `{setting}` to another port (0: any)",
        ) from error
    return sock, sock.getsockopt_string(zmq.LAST_ENDPOINT)
