"""What no pipeline can beat: the recipe on arrays in memory, one copy of its input, one write of its output with sync.

python benchmarks/limit.py STATE_DIR JOB_KEY        prints JSON, seconds
"""

import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from inscan.service.messages import InferenceJob
from inscan.service.recipes import process
from inscan.service.spool import load


def main() -> None:
    """Measure."""
    state, key = Path(sys.argv[1]), sys.argv[2]
    with closing(sqlite3.connect(f"file:{state / 'journal.db'}?mode=ro", uri=True)) as journal:
        (text,) = journal.execute("SELECT job FROM jobs WHERE key = ?", (key,)).fetchone()
    job = InferenceJob.model_validate_json(text)
    mapped = load(Path(job.spool), job.arrays)
    inference, copy, write = [], [], []
    for _ in range(4):
        began = time.perf_counter()
        arrays = {name: np.array(array) for name, array in mapped.items()}
        copied = time.perf_counter()
        processed = process(job, arrays, lambda _: None)
        done = time.perf_counter()
        with tempfile.NamedTemporaryFile(dir=state) as file:
            for array in processed.arrays:
                file.write(np.ascontiguousarray(array.values).data)
            file.flush()
            os.fsync(file.fileno())
            written = time.perf_counter()
        inference.append(done - copied)
        copy.append(copied - began)
        write.append(written - done)
    # The first pass warms the allocator and the page cache.
    mid = statistics.median
    print(
        json.dumps(
            {"inference": mid(inference[1:]), "copy": mid(copy[1:]), "write": mid(write[1:])}
        )
    )


if __name__ == "__main__":
    main()
