"""Beamlines as data and startup files, and the simulated beamlines with their known samples."""
