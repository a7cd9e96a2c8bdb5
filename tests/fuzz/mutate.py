"""Changes to a valid file that keep most of its structure: bytes, JSON, lines, tar, zip, PNG."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Mutator = Callable[[random.Random, bytes], bytes]

ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\n",
    b" ",
    b"-",
    b"9",
    b'"',
    b"{",
    b"[",
    b"\x1b[31m",
)

RAW = {  # placeholder -> text that json.dumps cannot write
    "@deep@": "[" * 3000 + "]" * 3000,
    "@big@": "1e308",
    "@huge@": "1" + "0" * 400,
    "@inf@": "1e999",
    "@nan@": "NaN",
    "@minus@": "-0",
    "@surrogate@": '"\\ud800"',
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1.0, 2**31, 2**63, 2**64, 10**20, 1e-320),
    *(
        "",
        " ",
        "x",
        "0",
        "0.99",
        "true",
        "..",
        "../../etc/passwd",
        "/",
        "a\0b",
        "\u202e",
        "é" * 300,
    ),
    *([], {}, [[]], [None], {"": None}, [0, 0, 0, 0], ["a", 1], {"id": 1}),
    *RAW,
)


def bytes_(rng: random.Random, raw: bytes) -> bytes:
    """One to four changes of single bytes or slices."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, end = rng.randrange(len(out) + 1), rng.randrange(len(out) + 1)
        low, high = min(at, end), max(at, end)
        high = min(high, low + rng.choice((1, 2, 4, 16, 512)))
        kind = rng.randrange(7)
        if kind <= 2 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del out[low:high]
        elif kind == 4:
            out[at:at] = out[low:high] or rng.choice(ODD_BYTES)
        elif kind == 5:
            out[at : at + 1] = rng.choice(ODD_BYTES)
        else:
            del out[at:]
    return bytes(out)


def json_(rng: random.Random, raw: bytes) -> bytes:
    """Changes one or two nodes of a JSON (see `change_node`), or in 10 % of the calls bytes.

    In 10 % of the other calls it also repeats a key with another value.
    """
    if rng.random() < 0.1:
        return bytes_(rng, raw)
    value = json.loads(raw)
    for _ in range(rng.choice((1, 1, 2))):
        value = change_node(rng, value)
    text = json.dumps(value)
    for name, written in RAW.items():
        text = text.replace(f'"{name}"', written)
    if rng.random() < 0.1 and (keys := list(re.finditer(r'("[^"\\]*"): ', text))):
        at = rng.choice(keys)
        # The first 28 of VALUES: RAW's placeholders were already replaced above.
        repeated_key = f"{at[0]}{json.dumps(rng.choice(VALUES[:28]))}, "
        text = text[: at.start()] + repeated_key + text[at.start() :]
    return text.encode()


def nodes_in(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Appends (container, key) of every node below `value` to `found`; returns `found`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        found.append((value, key))
        if isinstance(part, (dict, list)):
            nodes_in(part, found)
    return found


def change_node(rng: random.Random, value: Any) -> Any:
    """The value with one node replaced by another value or node, removed, renamed or scaled.

    An entry of a list may also be appended to the list again.
    """
    nodes = nodes_in(value, []) if isinstance(value, (dict, list)) else []
    if not nodes or rng.random() < 0.02:
        return rng.choice(VALUES)
    container, key = rng.choice(nodes)
    kind = rng.randrange(10)
    if kind < 5:
        container[key] = rng.choice(VALUES)
    elif kind == 5:
        del container[key]
    elif kind == 6:
        other, other_key = rng.choice(nodes)
        container[key] = json.loads(
            json.dumps(other[other_key] if has_key(other, other_key) else None)
        )
    elif kind == 7 and isinstance(container, dict):
        container[rng.choice(("x", "", "id", "name", str(key).upper()))] = container.pop(key)
    elif kind == 8 and isinstance(container, list):
        container.append(json.loads(json.dumps(container[key])))
    elif isinstance(container[key], (int, float)) and not isinstance(container[key], bool):
        container[key] = rng.choice(
            (-container[key], container[key] * 10**6, str(container[key]), [container[key]])
        )
    return value


def has_key(container: Any, key: Any) -> bool:
    """Whether the container still has this key or index."""
    return key in container if isinstance(container, dict) else key < len(container)


def lines(rng: random.Random, raw: bytes) -> bytes:
    """Once or twice: removes a line, copies it to another place, or changes its bytes or a word."""
    rows = raw.split(b"\n")
    odd = (b"-1", b"0", b"1", b"999999", b"1e9", b"x", b"", b"\xff\xfe", b"\0", b"..", b"\xc2\xb2")
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(rows))
        words = re.split(rb"([ <>/.]|\")", rows[at])
        kind = rng.randrange(6)
        if kind == 0:
            del rows[at : at + 1]
            rows = rows or [b""]
        elif kind == 1:
            rows.insert(rng.randrange(len(rows) + 1), rows[at])
        elif kind == 2:
            rows[at] = bytes_(rng, rows[at] or b" ")
        else:
            words[rng.randrange(len(words))] = rng.choice(odd)
            rows[at] = b"".join(words)
    return b"\n".join(rows)


def tar(rng: random.Random, raw: bytes) -> bytes:
    """Changes a field of a header and corrects its checksum, copies a header, or changes bytes."""
    if rng.random() < 0.3:
        return bytes_(rng, raw)
    out = bytearray(raw)
    blocks = [i for i in range(0, len(out) - 511, 512) if out[i + 257 : i + 262] == b"ustar"]
    at = rng.choice(blocks or [0])
    if rng.random() < 0.2:
        other = rng.randrange(0, len(out), 512)
        out[other:other] = out[at : at + 512]
        return bytes(out)
    start, width = rng.choice(  # name, mode, uid, size, time, type, link name, prefix
        ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155))
    )
    odd = (
        b"\xff",
        b"\x80",
        b"7",
        b"8",
        b"\0",
        b"-1",
        b"..",
        b"/x",
        b" ",
        b"S",
        b"x",
        b"g",
        b"L",
        b"K",
    )
    new = rng.choice(odd) * rng.choice((1, width))
    out[at + start : at + start + width] = new[:width].ljust(width, b"\0")
    out[at + 148 : at + 156] = b" " * 8
    out[at + 148 : at + 155] = b"%06o\0" % sum(out[at : at + 512])
    return bytes(out)


def zip_(inner: Mutator, member: str) -> Mutator:
    """A mutator that changes bytes of a zip, or applies `inner` to the member named `...member`."""

    def mutate(rng: random.Random, raw: bytes) -> bytes:
        """The changed zip."""
        if rng.random() < 0.3:
            return bytes_(rng, raw)
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(raw)) as z, zipfile.ZipFile(out, "w") as new:
            for info in z.infolist():
                data = z.read(info)
                new.writestr(
                    info.filename, inner(rng, data) if info.filename.endswith(member) else data
                )
        return out.getvalue()

    return mutate


def safetensors(rng: random.Random, raw: bytes) -> bytes:
    """Changes the JSON header and corrects its length, or changes single bytes."""
    if rng.random() < 0.3:
        return bytes_(rng, raw)
    length = struct.unpack("<Q", raw[:8])[0]
    header = json_(rng, raw[8 : 8 + length].rstrip())
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def png(rng: random.Random, raw: bytes) -> bytes:
    """Changes a chunk and corrects its checksum, doubles or removes a chunk, or changes bytes."""
    if rng.random() < 0.4:
        return bytes_(rng, raw)
    chunks, at = [], 8
    while at + 12 <= len(raw):
        size = struct.unpack(">I", raw[at : at + 4])[0]
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]))
        at += 12 + size
    number = rng.randrange(len(chunks))
    kind, data = chunks[number]
    action = rng.randrange(4)
    if action == 0:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[number])
    elif action == 1:
        del chunks[number]
    else:
        chunks[number] = (kind, bytes_(rng, data or b"\0"))
    out = raw[:8]
    for kind, data in chunks:
        out += (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )
    return out
