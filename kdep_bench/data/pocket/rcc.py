"""Reads Qt binary resource containers (`.rcc`), the format that rcc(1) writes.

Layout (big endian; source: qtbase, src/tools/rcc/rcc.cpp and src/corelib/io/qresource.cpp):

- Header: magic "qres", then as uint32: version, offsets of the tree, the data and the names.
- Tree node: uint32 name offset, uint16 flags, then for a folder uint32 number of children and
  uint32 first child, for a file uint16 country, uint16 language and uint32 data offset; from
  version 2 on also uint64 time.
- Name: uint16 length, uint32 hash, text in UTF-16.
- Data of a file: uint32 size, then the bytes. If compressed with zlib, the first 4 bytes are the
  uncompressed size.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from kdep_bench.data.pocket.debian import how_to_unpack_again
from kdep_bench.errors import KdepError

_ZLIB, _FOLDER, _ZSTD = 1, 2, 4  # flags of a tree node


def read_rcc(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yields (path inside the container without leading '/', bytes) of every file.

    Raises:
        KdepError: not a resource container, truncated, damaged, or zstd-compressed.
    """
    raw = Path(path).read_bytes()
    if raw[:4] != b"qres":
        raise KdepError(
            f"the file {path} starts with {raw[:4]!r}",
            expected="a Qt resource container",
            fix=how_to_unpack_again(),
        )
    try:
        yield from _walk(raw, str(path))
    except (struct.error, zlib.error, UnicodeDecodeError, RecursionError) as e:
        raise KdepError(
            f"the resource container {path} is damaged ({e})",
            fix=how_to_unpack_again(),
        ) from None


def _walk(raw: bytes, path: str) -> Iterator[tuple[str, bytes]]:
    """Yields (path, bytes) of every file in the container `raw`; its `path` is for errors."""
    version, tree, data, names = struct.unpack_from(">IIII", raw, 4)
    node_size = 14 if version < 2 else 22

    def name(offset: int) -> str:
        (length,) = struct.unpack_from(">H", raw, names + offset)
        start = names + offset + 6
        return raw[start : start + 2 * length].decode("utf-16-be")

    def visit(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        """Yields the files of tree node `index`, which is inside `folder`; node 0 is the root."""
        node = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", raw, node)
        node_path = folder if index == 0 else f"{folder}/{name(name_offset)}".lstrip("/")
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", raw, node + 6)
            for child in range(first, first + count):
                yield from visit(child, node_path)
            return
        if flags & _ZSTD:
            raise KdepError(
                f"the file {node_path} inside {path} is compressed with zstd",
                expected="uncompressed data or zlib",
                fix="use the package of another Debian release, or set source='pip-only' in the "
                "data config",
            )
        (data_offset,) = struct.unpack_from(">I", raw, node + 10)
        (size,) = struct.unpack_from(">I", raw, data + data_offset)
        start = data + data_offset + 4
        payload = raw[start : start + size]
        if len(payload) != size:
            raise struct.error(f"{node_path} is truncated")
        yield node_path, zlib.decompress(payload[4:]) if flags & _ZLIB else payload

    yield from visit(0, "")
