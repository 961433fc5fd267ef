"""Where documents come from besides a RunEngine in this process; foreign protocols live here."""
