# ruff: noqa: F821 - names come from earlier files of this folder
"""Every document goes to inscan; this neither slows nor stops a scan.

INSCAN_SERVICE is the address of a service, tcp://host:port. Without it the service of the state
folder is found, or the one that the profile names.
"""

import os

from inscan.callbacks import connect

inscan = connect(os.environ.get("INSCAN_SERVICE") or "sim_xrf", state_dir=parameters.state_dir)
RE.subscribe(inscan)
