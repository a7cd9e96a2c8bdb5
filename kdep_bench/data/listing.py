"""Lists the images of a folder; all readers use the same suffixes and skip the same files.

Hidden files and folders and those of operating systems (`Thumbs.db`, `desktop.ini`, `__MACOSX`,
...) are skipped and counted by reason. Other files with an image suffix are images. All remaining
files are returned as `other_files`; the caller decides whether they are a fault.

Links to files and folders are followed, except a link to a folder above it, which is skipped. File
names that are not UTF-8 keep their bytes (Python's surrogateescape): open such a file with Python's
`open`, not with a C library's own reader, and print its name through `shown`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from kdep_bench.errors import KdepError

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pnm"),
    )
)

_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"),
}


@dataclass
class Listing:
    """The files below a folder. Paths are relative to `root`, with "/" between their parts.

    Attributes:
        root: the folder.
        images: files with an image suffix, sorted as text. A broken link counts as a file; the
            check of the image reports it.
        other_files: files with another suffix, sorted.
        skipped: number of skipped entries by reason; a folder counts as one entry.
        examples: the first skipped entry by reason.
    """

    root: Path
    images: list[str] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self) -> str:
        """The skipped entries as a text without a full stop; "" if there are none."""
        parts = [
            f"{count} {reason} ({shown(self.examples[reason])}{', ...' if count > 1 else ''})"
            for reason, count in sorted(self.skipped.items())
        ]
        return f"skipped in {shown(self.root)}: {', '.join(parts)}" if parts else ""

    def by_class(self) -> dict[str, list[str]]:
        """Images by their folder directly below `root`, both sorted.

        Images directly in `root` belong to the class "".
        """
        classes: dict[str, list[str]] = {}
        for name in self.images:
            head, slash, _ = name.partition("/")
            classes.setdefault(head if slash else "", []).append(name)
        return dict(sorted(classes.items()))

    def _skip(self, reason: str, path: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        self.examples[reason] = min(path, self.examples.get(reason, path))


def is_image_name(name: str) -> bool:
    """Whether the name of a file ends in an image suffix, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def reason_to_skip(name: str, is_dir: bool) -> str:
    """The reason to skip an entry of a folder, as text; "" for an entry that may be data."""
    lower = name.lower()
    if is_dir:
        if lower in _SYSTEM_FOLDERS:
            return f"{name} folder(s)"
        return "hidden folder(s)" if name.startswith(".") else ""
    if lower in _SYSTEM_FILES:
        return f"{name.strip()} file(s)"
    if name == ".DS_Store":
        return ".DS_Store file(s)"
    if name.startswith("._"):
        return "._ file(s) of macOS"
    return "hidden file(s)" if name.startswith(".") else ""


def list_images(folder: str | Path) -> Listing:
    """All files below `folder`, divided as described at the top of this module.

    Raises:
        KdepError: the folder, or one below it, does not exist or cannot be read.
    """
    root = Path(folder)
    listing = Listing(root)
    for path in _walk(listing):
        (listing.images if is_image_name(path) else listing.other_files).append(path)
    listing.images.sort()
    listing.other_files.sort()
    return listing


def count_images(folder: str | Path, limit: int) -> int:
    """The number of images below `folder`, at most `limit`: counting stops there.

    Raises:
        KdepError: the folder, or one below it, does not exist or cannot be read.
    """
    images = (p for p in _walk(Listing(Path(folder))) if is_image_name(p))
    return sum(1 for _ in islice(images, limit))


def class_names(folder: str | Path) -> list[str]:
    """Sorted names of the folders directly below `folder`, without those that are skipped."""
    return sorted(
        e.name
        for e in _entries(str(folder))
        if _is_dir(e) and not reason_to_skip(e.name, is_dir=True)
    )


def shown(path: str | Path) -> str:
    """A path as printable text: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _walk(listing: Listing) -> Iterator[str]:
    """Yields the paths of files below `listing.root`, relative to it, in no particular order."""
    root = str(listing.root)
    # Folders still to read, each with the (device, inode) of its parent folders.
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while stack:
        relative, parents = stack.pop()
        folder = os.path.join(root, relative) if relative else root
        parents = parents | {_identity(folder)}
        for entry in _entries(folder):
            path = f"{relative}/{entry.name}" if relative else entry.name
            is_dir = _is_dir(entry)
            if reason := reason_to_skip(entry.name, is_dir):
                listing._skip(reason, path)
            elif not is_dir:
                yield path
            elif entry.is_symlink() and _identity(entry.path) in parents:
                listing._skip("link(s) to a folder above", path)
            else:
                stack.append((path, parents))


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as e:
        raise _unreadable(folder, e) from None
    return status.st_dev, status.st_ino


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as e:
        raise _unreadable(folder, e) from None


def _unreadable(folder: str, error: OSError) -> KdepError:
    return KdepError(
        f"the folder {shown(folder)} cannot be read ({error.strerror})",
        fix="correct its path, or its permissions",
    )
