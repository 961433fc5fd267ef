"""Samples with known truth: what networks train on and what simulated beamlines hold.

The families behind `training_maps` and the built-in samples are kept apart: no network has seen
anything like the samples that demo and evaluation use.
"""

from __future__ import annotations

from inscan.profiles.sample_families import training_maps

__all__ = ["training_maps"]
