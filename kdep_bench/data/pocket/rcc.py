"""Reader of Qt binary resource containers (`.rcc`), the format that rcc(1) writes.

Layout (big endian; source: qtbase, src/tools/rcc/rcc.cpp and src/corelib/io/qresource.cpp): magic
`qres`, uint32 version, offsets of tree, data and names; a tree node is uint32 name offset, uint16
flags, then either (uint32 children, uint32 first child) or (uint16 country, uint16 language,
uint32 data offset), and from version 2 on a uint64 time. A name is uint16 length, uint32 hash,
UTF-16. A payload is uint32 size, then bytes; when compressed with zlib its first 4 bytes are the
unpacked size.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from kdep_bench.data.pocket.debian import unpacked_again
from kdep_bench.errors import KdepError

_ZLIB, _FOLDER, _ZSTD = 1, 2, 4


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
            fix=unpacked_again(),
        )
    try:
        yield from _walk(raw, str(path))
    except (struct.error, zlib.error, UnicodeDecodeError, RecursionError) as e:
        raise KdepError(
            f"the resource container {path} is damaged ({e})",
            fix=unpacked_again(),
        ) from None


def _walk(raw: bytes, path: str) -> Iterator[tuple[str, bytes]]:
    version, tree, data, names = struct.unpack_from(">IIII", raw, 4)
    node_size = 14 if version < 2 else 22

    def name(offset: int) -> str:
        (length,) = struct.unpack_from(">H", raw, names + offset)
        start = names + offset + 6
        return raw[start : start + 2 * length].decode("utf-16-be")

    def visit(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        offset_of_node = tree + index * node_size
        name_at, flags = struct.unpack_from(">IH", raw, offset_of_node)
        here = folder if index == 0 else f"{folder}/{name(name_at)}".lstrip("/")
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", raw, offset_of_node + 6)
            for child in range(first, first + count):
                yield from visit(child, here)
            return
        if flags & _ZSTD:
            raise KdepError(
                f"{here} inside {path} is compressed with zstd",
                expected="uncompressed data or zlib",
                fix="use the package of another Debian release, or the pip-only source",
            )
        (data_at,) = struct.unpack_from(">I", raw, offset_of_node + 10)
        (size,) = struct.unpack_from(">I", raw, data + data_at)
        start = data + data_at + 4
        payload = raw[start : start + size]
        if len(payload) != size:
            raise struct.error(f"{here} is truncated")
        yield here, zlib.decompress(payload[4:]) if flags & _ZLIB else payload

    yield from visit(0, "")
