"""What runs beside a RunEngine: the connection, assemblers, plans and devices.

Three lines in a beamline's startup::

    from inscan.callbacks import connect
    inscan = connect("profile.yaml")
    RE.subscribe(inscan)
"""

from inscan.callbacks.connection import Connection, connect

__all__ = ["Connection", "connect"]
