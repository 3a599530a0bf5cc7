"""Writes rows as npy, safetensors or Parquet, part by part: memory does not grow with a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

SAFETENSORS = {"float16": "F16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class Rows:
    """Some rows of a task.

    Args:
        features: (n, ...), an array for each row.
        paths: n of them.
        times: (n, 2) float64, the seconds at which each row begins and ends; None for pictures.
        cells: (n, T + 1) float64, where its temporal cells begin and end; None without cells.
    """

    features: np.ndarray
    paths: list[str]
    times: np.ndarray | None = None
    cells: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)


def write_rows(path: str, format: str, parts: Iterable[Rows], about: dict[str, Any]) -> int:
    """Write a file of at least one row; returns how many.

    Args:
        path: of the file, which is replaced.
        format: "npy", "safetensors" or "parquet".
        parts: can be gone through several times; the row groups of Parquet.
        about: plain values, with "model" among them; npy has no place for them.
    """
    return _WRITERS[format](path, parts, about)


def _write_npy(path: str, parts: Iterable[Rows], about: dict[str, Any]) -> int:
    total = sum(len(rows) for rows in parts)
    first = next(iter(parts)).features
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (total, *first.shape[1:]),
    }
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        _write_all(stream, parts, lambda rows: rows.features)
    return total


def _write_safetensors(path: str, parts: Iterable[Rows], about: dict[str, Any]) -> int:
    """safetensors' own writer takes whole tensors from memory; its format is a header of JSON and
    the bytes of each tensor after the other."""
    total = sum(len(rows) for rows in parts)
    first = next(iter(parts))
    columns: dict[str, Callable[[Rows], np.ndarray]] = {}
    if first.times is not None:
        columns["times"] = lambda rows: rows.times  # type: ignore[return-value,assignment]
    if first.cells is not None:
        columns["cells"] = lambda rows: rows.cells  # type: ignore[return-value,assignment]
    columns["features"] = lambda rows: rows.features
    paths = [path for rows in parts for path in rows.paths]
    if len(set(paths)) == 1:
        paths = paths[:1]
    header: dict[str, Any] = {
        "__metadata__": {
            "model": about["model"],
            "paths": json.dumps(paths),
            "about": json.dumps(about),
        }
    }
    end = 0
    for name, column in columns.items():
        array = column(first)
        start, end = end, end + total * array[0].nbytes
        shape = [total, *array.shape[1:]]
        dtype = SAFETENSORS[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for column in columns.values():
            _write_all(stream, parts, column)
    return total


def _write_all(stream: Any, parts: Iterable[Rows], column: Callable[[Rows], np.ndarray]) -> None:
    for rows in parts:
        stream.write(np.ascontiguousarray(column(rows)).data)


def _write_parquet(path: str, parts: Iterable[Rows], about: dict[str, Any]) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    def column(array: np.ndarray) -> Any:
        """(n, ...) -> n lists of a fixed length."""
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:])))

    def table(rows: Rows) -> Any:
        count = len(rows)
        # What is no text in a path's bytes is escaped: Parquet holds UTF-8 alone.
        paths = [p.encode("utf-8", "backslashreplace").decode() for p in rows.paths]
        columns = {"path": pa.array(paths, pa.string())}
        if rows.times is not None:
            columns["start"] = pa.array(rows.times[:, 0].copy())
            columns["end"] = pa.array(rows.times[:, 1].copy())
        if rows.cells is not None:
            columns["cells"] = column(rows.cells)
        columns["model"] = pa.array([about["model"]] * count, pa.string())
        columns["features"] = column(rows.features)
        shape = json.dumps(rows.features.shape[1:])
        return pa.table(columns).replace_schema_metadata(
            {"model": about["model"], "shape": shape, "about": json.dumps(about)}
        )

    total, writer = 0, None
    try:
        for rows in parts:
            made = table(rows)
            if writer is None:
                small = [name for name in made.column_names if name in ("path", "model")]
                writer = parquet.ParquetWriter(path, made.schema, use_dictionary=small)
            writer.write_table(made, row_group_size=len(rows))
            total += len(rows)
    finally:
        if writer is not None:
            writer.close()
    return total


_WRITERS = {"npy": _write_npy, "safetensors": _write_safetensors, "parquet": _write_parquet}
