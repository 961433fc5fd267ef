"""The RunEngine; every run says which beamline it comes from."""

from bluesky import RunEngine

RE = RunEngine({"beamline_id": "sim_xrf"})
