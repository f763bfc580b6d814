"""The folder of images: find the file of an identifier, or every image below it, and never leave the folder."""

import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from csi_job.errors import DataError
from csi_job.files import is_file, is_folder
from csi_job.radiographs.content import NUM_MAGIC_BYTES, why_skipped
from csi_job.radiographs.spreadsheet import NumericNames, plain_id

_FIRST_EXTENSIONS = (".nii.gz", ".nii", ".dcm", ".dicom", ".png", ".jpg", ".jpeg")  # these come first
EXTENSIONS = (*_FIRST_EXTENSIONS, ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".j2k", ".jfif", ".jpe")
_SYSTEM_NAMES = {  # in lower case
    *(".ds_store", ".localized", "__macosx", ".trashes", ".spotlight-v100", ".fseventsd", ".appledouble"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir", ".git"),
}

MISSING = "no image of this name"
_FOLDER_LEAVING = (
    "its sub-folder is behind a link that leaves the folder of images; replace the link by a copy of its target"
)
_LEAVING = "a link that leaves the folder of images; copy what it links to into the folder"
_ROOT = PurePosixPath()
_MAY_NAME_FOLDERS = re.compile(r".*[/\\:]|\.{0,2}$", re.DOTALL)  # a path costs more than a name
_Listing = dict[str, list[tuple[str, bool]]]  # by identifier: file names, and whether they are links


logger = logging.getLogger(__name__)


class ImageFolder:
    """A folder of images, each subfolder listed once."""

    def __init__(self, folder: Path) -> None:
        """List the folder; raise `OSError` if it cannot be read."""
        self._root = folder.resolve(strict=True)
        self._listings: dict[PurePosixPath, _Listing] = {_ROOT: _list_folder(self._root)}
        self._numeric_names: NumericNames | None = None

    def find(self, file_id: str) -> Path | str:
        """Return the path of an identifier's image, or the problem with it.

        An identifier without a subfolder also stands for the only image of this name in any subfolder.
        """
        parent, name = _ROOT, file_id
        if _MAY_NAME_FOLDERS.match(file_id):
            place, on_windows = PurePosixPath(file_id), PureWindowsPath(file_id)
            if on_windows.anchor or ".." in on_windows.parts or not place.name:
                return "the FileID leaves the folder of images"
            if "\\" in file_id:
                return "a backslash in the FileID; write sub-folder/name"
            parent, name = place.parent, place.name
            if not file_id.isascii() and not os.path.isdir(self._root / parent):  # noqa: PTH112 - raises nothing
                parent = PurePosixPath(unicodedata.normalize("NFD", str(parent)))  # as macOS writes it
        entries = self._listing(parent).get(_composed(name), [])
        if not entries:
            return self._find_below(name) if parent == _ROOT else self._why_missing(parent)
        if len(entries) > 1:
            entries = [entry for entry in entries if not _is_newer(entry[0])] or entries
        if len(entries) > 1:
            extensions = sorted(found[len(name) :] or "no extension" for found, _ in entries)
            return f"several images of this name ({', '.join(extensions)})"
        found, is_link = entries[0]
        path = self._root.joinpath(parent, found)
        return self._follow(path) if is_link else path

    def could_be(self, file_id: str) -> list[str]:
        """Return the identifiers of images that a spreadsheet may have turned into this one."""
        if self._numeric_names is None:
            self._numeric_names = NumericNames((*self._listings[_ROOT], *self._below))
        return self._numeric_names.could_be(_without_extension(file_id))

    def alike(self, file_id: str) -> list[str]:
        """Return the images, with their sub-folders, whose names differ at most in extension, folder or spelling."""
        return sorted(self._by_stem.get(_stem(PureWindowsPath(file_id).name), ()))

    @cached_property
    def _by_stem(self) -> dict[str, set[str]]:
        found = defaultdict(set)
        for entries in self._listings[_ROOT].values():
            for name, _ in entries:
                found[_stem(name)].add(name)
        for paths in self._below.values():
            for path in paths:
                found[_stem(path.name)].add(path.relative_to(self._root).as_posix())
        return found

    def _find_below(self, name: str) -> Path | str:
        found = self._below.get(_composed(name), [])
        if len(found) > 1:
            hint = "write the sub-folder in the FileID: sub-folder/name"
            return f"{MISSING} in the folder, but {len(found)} in its sub-folders; {hint}"
        return found[0] if found else MISSING

    @cached_property
    def _below(self) -> dict[str, list[Path]]:
        """The files in all subfolders by their names as in `_list_folder`; without links, which may lead out."""
        found: dict[str, list[Path]] = {}
        for folder, subfolders, _ in os.walk(self._root):
            subfolders[:] = sorted(name for name in subfolders if not is_of_system(name))
            if folder != str(self._root):
                with suppress(OSError):
                    for name, entries in _list_folder(Path(folder)).items():
                        paths = [Path(folder, file_name) for file_name, is_link in entries if not is_link]
                        found.setdefault(name, []).extend(paths)
        return found

    def _listing(self, subfolder: PurePosixPath) -> _Listing:
        if subfolder not in self._listings:
            try:
                folder = (self._root / subfolder).resolve(strict=True)
                self._listings[subfolder] = _list_folder(folder) if folder.is_relative_to(self._root) else {}
            except (OSError, ValueError, RuntimeError):  # missing, unreadable, invalid name, a loop of links
                self._listings[subfolder] = {}
        return self._listings[subfolder]

    def _why_missing(self, subfolder: PurePosixPath) -> str:
        folder = self._root / subfolder
        is_leaving = os.path.isdir(folder) and not folder.resolve().is_relative_to(self._root)  # noqa: PTH112 - raises nothing
        return _FOLDER_LEAVING if is_leaving else MISSING

    def _follow(self, link: Path) -> Path | str:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):
            return "a broken link"
        if not target.is_relative_to(self._root):
            return _LEAVING
        return link if is_file(target) else "not a file"


def _list_folder(folder: Path) -> _Listing:
    """List files by their full names and by their names without a known extension."""
    listing: _Listing = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            is_link = entry.is_symlink()
            if (is_link or entry.is_file()) and not is_of_system(entry.name):
                composed = _composed(entry.name)
                for name in {composed, _without_extension(composed)}:
                    listing.setdefault(name, []).append((entry.name, is_link))
    return listing


def _without_extension(name: str) -> str:
    extension = next((known for known in EXTENSIONS if name.casefold().endswith(known)), "")
    return name[: len(name) - len(extension)]


def _stem(name: str) -> str:
    """Return a name without its known extension, to compare it."""
    return plain_id(_without_extension(name))


def _is_newer(name: str) -> bool:
    """Return whether earlier versions ignored this file; beside an image that they found, it is not meant."""
    return name.casefold().endswith(EXTENSIONS) and not name.casefold().endswith(_FIRST_EXTENSIONS)


def is_of_system(name: str) -> bool:
    """Return whether macOS, Windows or network storage left this file or folder behind."""
    return name.startswith("._") or name.casefold() in _SYSTEM_NAMES


def expand_folders(paths: Iterable[Path]) -> list[Path]:
    """Return files as they are, and the images in and below each folder, sorted by path; log what is skipped.

    Raises:
        DataError: a folder holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if not is_folder(path):
            files += [] if is_of_system(path.name) else [path]
            continue
        found = find_images_below(path)
        if not found.paths:
            allowed = "images with or without extension: PNG, JPEG, TIFF, WebP, BMP, GIF, JPEG 2000, DICOM, NIfTI"
            raise DataError(f"the folder holds no image ({found.summary()})", got=str(path), allowed=allowed)
        logger.info("%s", found.summary())
        files += found.paths
    if not files:
        raise DataError("none of the files is an image, only metadata of the system")
    return files


@dataclass(frozen=True)
class FoundImages:
    """The images in and below a folder, and the numbers of other entries by the reason why they were skipped."""

    paths: tuple[Path, ...]
    num_skipped: dict[str, int]

    def summary(self) -> str:
        """Return e.g. `found 3 images; skipped 2 of 5 entries: 1 not an image, 1 metadata of the system`."""
        num_skipped, num_images = sum(self.num_skipped.values()), len(self.paths)
        found = f"found {num_images} image{'s'[: num_images != 1]}"
        if not num_skipped:
            return found
        num_entries = num_images + num_skipped
        noun = "entry" if num_entries == 1 else "entries"
        reasons = ", ".join(f"{num} {why}" for why, num in self.num_skipped.items())
        return f"{found}; skipped {num_skipped} of {num_entries} {noun}: {reasons}"


def find_images_below(folder: Path) -> FoundImages:
    """Find the images in and below a folder: by their extension, or else by their content; sorted by path."""
    paths: list[Path] = []
    skipped: Counter[str] = Counter()

    def refuse(_: OSError) -> None:
        skipped["unreadable folder"] += 1

    for place, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not is_of_system(name)]
        if num_links := sum(Path(place, name).is_symlink() for name in subfolders):
            skipped["link to a folder"] += num_links
        for name in names:
            reason = _why_no_image(Path(place, name))
            if reason:
                skipped[reason] += 1
            else:
                paths.append(Path(place, name))
    return FoundImages(tuple(sorted(paths)), dict(skipped))


def _why_no_image(path: Path) -> str:
    if is_of_system(path.name):
        return "metadata of the system"
    if path.name.casefold().endswith(EXTENSIONS):
        return ""
    if path.name.casefold() == "dicomdir":
        return "DICOM index"
    try:
        if not is_file(path):
            return "not a regular file"
        with path.open("rb") as file:
            return why_skipped(file.read(NUM_MAGIC_BYTES))
    except OSError:
        return "unreadable"


def _composed(name: str) -> str:
    """Return the name in composed Unicode, like the table; some file systems decompose accents."""
    return unicodedata.normalize("NFC", name)
