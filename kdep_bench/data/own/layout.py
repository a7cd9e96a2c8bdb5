"""Links or copies the images of a data set to the tasks' layout, and hashes their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from kdep_bench.data.images import ImageInfo, place_all, placed_name
from kdep_bench.data.listing import shown


class Layout:
    """Links and converted copies below the folder `data`.

    Args:
        data: the folder, created if missing.
        info: of every image that will be placed, by the user's file.
    """

    def __init__(self, data: Path, info: Mapping[Path, ImageInfo]) -> None:
        self.data, self.info = data, info
        self._links: list[tuple[Path, Path]] = []
        self._masks: list[tuple[Path, Path]] = []
        self._rows: list[str] = []
        data.mkdir(parents=True, exist_ok=True)

    def images(self, places: Mapping[Path, Path]) -> None:
        """Adds images: file -> place."""
        for file, place in places.items():
            self._links.append((file, place))
            self._row(place, self.info[file].sha256)

    def folder(self, root: Path, names: Iterable[str], target: Path, *, whole: bool) -> None:
        """Adds images of one folder: one link to it where `whole` and no file changes."""
        placed = {n: placed_name(n, self.info[root / n]) for n in names}
        if whole and all(n == p and self.info[root / n].plain for n, p in placed.items()):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(root, target_is_directory=True)
            for name in placed:
                self._row(target / name, self.info[root / name].sha256)
        else:
            self.images({root / n: target / p for n, p in placed.items()})

    def masks(self, places: Mapping[Path, Path], hashes: Mapping[Path, str]) -> None:
        """Adds masks, which are linked as they are: file -> place, and file -> SHA-256."""
        for file, place in places.items():
            self._masks.append((file, place))
            self._row(place, hashes[file])

    def place(self) -> None:
        """Makes all links and copies. One file may have several places."""
        while self._links:
            now: dict[Path, Path] = {}
            later = [link for link in self._links if now.setdefault(*link) != link[1]]
            place_all(self.info, now)
            self._links = later
        for file, place in self._masks:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)

    def fingerprint(self) -> str:
        """SHA-256 over name and content of all images, and over the json files written here."""
        for path in sorted(self.data.glob("*/*.json")) + sorted(self.data.glob("*/*/*.json")):
            if not any(p.is_symlink() for p in (path, path.parent)):
                self._row(path, hashlib.sha256(path.read_bytes()).hexdigest())
        return hashlib.sha256("\n".join(sorted(self._rows)).encode()).hexdigest()

    def _row(self, place: Path, sha256: str) -> None:
        self._rows.append(f"{sha256} {shown(place.relative_to(self.data))}")
