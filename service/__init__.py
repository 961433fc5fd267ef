"""The processes: ingest, journal, broker, workers, Tiled writer, rescans and the command line."""
