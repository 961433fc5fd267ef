"""The scalars of a stream in Tiled: one table, or several where there are many columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["Table"]

_TABLE = "internal"
_ARROW = "application/vnd.apache.arrow.file"
_NOT_DATA = ("seq_num", "time")


class Table:
    """The scalars of a stream, a row for each event, in the order of their coming."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns
        self.seq_nums = np.asarray(columns["seq_num"], dtype=np.int64)
        self.times = [float(value) for value in columns["time"]]

    @classmethod
    def read(cls, node: Any) -> Table | None:
        """Return the table of a stream; None when it has none (yet)."""
        # Beyond some hundred columns it is split into internal_0, internal_1, ...
        columns: dict[str, Any] = {}
        for name, part in node.items():
            if name == _TABLE or name.startswith(f"{_TABLE}_"):
                table = _arrow(part)
                columns |= {key: _column(table.column(key)) for key in table.column_names}
        if not all(name in columns for name in _NOT_DATA):
            return None
        shortest = min(len(values) for values in columns.values())
        return cls({name: values[:shortest] for name, values in columns.items()})

    def __len__(self) -> int:
        return len(self.seq_nums)

    def has(self, key: str, row: int) -> bool:
        """Whether an event holds a key: then it has a timestamp of it."""
        stamps = self.columns.get(f"ts_{key}")
        return stamps is None or _is_number(stamps[row])

    def rows_of(self, key: str, available: int) -> np.ndarray:
        """Row of the key's array for each event; -1 where the event lacks the key, or it is not written yet."""
        present = np.array([self.has(key, row) for row in range(len(self))], dtype=bool)
        places = np.cumsum(present) - 1
        return np.where(present & (places < available), places, -1)

    def complete(self, rows: Mapping[str, np.ndarray]) -> int:
        """Number of events whose arrays are all there; arrays are written before the rows of the table."""
        n = len(self)
        for key, places in rows.items():
            short = [i for i in np.flatnonzero(places[:n] < 0) if self.has(key, int(i))]
            n = int(short[0]) if short else n
        return n


def _is_number(value: Any) -> bool:
    return value is not None and value == value


def _arrow(part: Any) -> pa.Table:
    """A table as the server sends it: Tiled's client makes texts of the small arrays in its cells."""
    tables = []
    for number in range(part.structure().npartitions):
        answer = part.context.http_client.get(
            part.item["links"]["partition"].format(index=number), headers={"Accept": _ARROW}
        )
        answer.raise_for_status()
        tables.append(pa.ipc.open_file(pa.BufferReader(answer.content)).read_all())
    return pa.concat_tables(tables)


def _column(values: pa.ChunkedArray) -> np.ndarray | list[Any]:
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return values.to_numpy()
    return values.to_pylist()
