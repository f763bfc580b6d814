"""The folder of images: find the file of an identifier, and never leave the folder."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

EXTENSIONS = (".nii.gz", ".nii", ".dcm", ".dicom", ".png", ".jpg", ".jpeg")

_Listing = dict[str, list[tuple[str, bool]]]  # by identifier: file names, and whether they are links


class ImageFolder:
    """A folder of images, each subfolder listed once."""

    def __init__(self, folder: Path) -> None:
        """List the folder; raise `OSError` if it cannot be read."""
        self._root = folder.resolve(strict=True)
        self._listings: dict[PurePosixPath, _Listing] = {PurePosixPath(): _list_folder(self._root)}

    def find(self, file_id: str) -> Path | str:
        """Return the path of an identifier's image, or the problem with it."""
        if _leaves_folder(file_id):
            return "the FileID leaves the folder of images"
        place = PurePosixPath(file_id)
        entries = self._listing(place.parent).get(_composed(place.name), [])
        if not entries:
            return "no image of this name"
        if len(entries) > 1:
            endings = sorted(name[len(place.name) :] or "no ending" for name, _ in entries)
            return f"several images of this name ({', '.join(endings)})"
        name, is_link = entries[0]
        path = self._root / place.parent / name
        return self._follow(path) if is_link else path

    def _listing(self, subfolder: PurePosixPath) -> _Listing:
        if subfolder not in self._listings:
            try:
                folder = (self._root / subfolder).resolve(strict=True)
                self._listings[subfolder] = _list_folder(folder) if folder.is_relative_to(self._root) else {}
            except (OSError, ValueError, RuntimeError):  # missing, unreadable, invalid name, a loop of links
                self._listings[subfolder] = {}
        return self._listings[subfolder]

    def _follow(self, link: Path) -> Path | str:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):
            return "a broken link"
        if not target.is_relative_to(self._root):
            return "a link that leaves the folder of images"
        return link if target.is_file() else "not a file"


def _leaves_folder(file_id: str) -> bool:
    """Decide by the identifier alone, by the rules of POSIX and of Windows."""
    place = PurePosixPath(file_id)
    absolute = place.is_absolute() or PureWindowsPath(file_id).drive or "\\" in file_id
    return bool(absolute) or ".." in place.parts or not place.name


def _list_folder(folder: Path) -> _Listing:
    """List files by their full names and by their names without a known extension."""
    listing: _Listing = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            is_link = entry.is_symlink()
            if is_link or entry.is_file():
                composed = _composed(entry.name)
                for name in {composed, _stem(composed)}:
                    listing.setdefault(name, []).append((entry.name, is_link))
    return listing


def _stem(name: str) -> str:
    extension = next((known for known in EXTENSIONS if name.casefold().endswith(known)), "")
    return name[: len(name) - len(extension)]


def _composed(name: str) -> str:
    """Return the name in composed Unicode, like the table; some file systems decompose accents."""
    return unicodedata.normalize("NFC", name)
