"""What is to be labelled: a folder of images and, where it is known, the truth about them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import DataProblem
from .files import natural_key

# What browsers show; Label Studio shows pictures with the browser's own means.
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")
IMAGE_COLUMN = "image"
FOLDER_CONTROL = "label"  # name of the control when folder names are the truth
NAMED = 3  # examples in a message


@dataclass(frozen=True)
class Dataset:
    """Images with the control that asks about them."""

    folder: Path  # absolute
    files: tuple[str, ...]  # relative to the folder, with "/", in reading order
    control: str
    classes: tuple[str, ...]  # empty: nobody told us
    truth: Mapping[str, str] = field(default_factory=dict)  # file -> class, where known
    notes: tuple[str, ...] = ()  # for the user: what was passed over

    def by_name(self) -> dict[str, tuple[str, ...]]:
        """Every name under which a file may be called -> the files that it may mean."""
        return _index(self.files)


def read_folder(path: Path) -> Dataset:
    """Images of a folder, or of one folder per class; then the folder names are the truth.

    Raises: DataProblem.
    """
    folder = path.expanduser().absolute()
    if not folder.exists():
        raise DataProblem(f"There is no folder {folder}. Give --images a folder of images, or of one folder per class.")
    if not folder.is_dir():
        raise DataProblem(f"{folder} is a file. Give --images the folder that holds the images.")
    try:
        flat, notes = _images(folder)
        by_class = {sub.name: _images(sub) for sub in _folders(folder)}
    except PermissionError as error:
        raise DataProblem(f"{error.filename} cannot be read. Allow it (chmod), or choose another folder.") from None
    filled = {name: found for name, (found, _) in by_class.items() if found}
    if flat:
        if filled:
            notes.append(f"{folder} holds images itself, so its folders were passed over: {shortened(sorted(filled))}")
        return Dataset(folder, tuple(sorted(flat, key=natural_key)), FOLDER_CONTROL, (), {}, tuple(notes))
    if not filled:
        raise DataProblem(_no_images(folder))
    for _, sub_notes in by_class.values():
        notes += sub_notes
    classes = sorted(filled, key=natural_key)
    truth = {f"{name}/{file}": name for name in classes for file in sorted(filled[name], key=natural_key)}
    # The order in which Label Studio numbers tasks: mixed, so that also its sequential order shows all classes.
    groups = [[file for file, label in truth.items() if label == name] for name in classes]
    files = [file for row in _round_robin(groups) for file in row]
    return Dataset(folder, tuple(files), FOLDER_CONTROL, tuple(classes), truth, tuple(notes))


def _images(folder: Path) -> tuple[list[str], list[str]]:
    names: list[str] = []
    unusable: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES) or not entry.is_file():
                continue
            (names if _is_text(entry.name) else unusable).append(entry.name)
    if not unusable:
        return names, []
    return names, [f"{len(unusable)} images of {folder} have names that are not UTF-8 text and were passed over"]


def _folders(folder: Path) -> list[Path]:
    return sorted(
        (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and _is_text(p.name)),
        key=lambda p: natural_key(p.name),
    )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_images(folder: Path) -> str:
    message = f"There are no images in {folder}; looked for {', '.join(SUFFIXES)}."
    for sub in _folders(folder):
        deeper = [p for p in _folders(sub) if _images(p)[0]]
        if deeper:
            return f"{message} There are some one level deeper; did you mean --images {sub}?"
    return message


def _round_robin(groups: Sequence[Sequence[str]]) -> Iterable[list[str]]:
    for i in range(max((len(g) for g in groups), default=0)):
        yield [g[i] for g in groups if i < len(g)]


def with_labels(data: Dataset, path: Path) -> Dataset:
    """The data set with the truth of a CSV: header `image,<control>`, one row per image.

    An image is named by its path inside the folder, by its file name, or by its file name without ending. An
    empty label means that the truth is not known.

    Raises: DataProblem.
    """
    control, rows = _read_csv(path)
    index = data.by_name()
    truth: dict[str, str] = {}
    missing: list[str] = []
    for line, name, label in rows:
        found = index.get(name, ())
        if len(found) > 1:
            raise DataProblem(
                f"{path}, line {line}: {name!r} may be {shortened(found)}. Write the path inside {data.folder}."
            )
        if not found:
            missing.append(name)
        elif label and truth.setdefault(found[0], label) != label:
            raise DataProblem(
                f"{path}, line {line}: {name!r} is {label!r} here and {truth[found[0]]!r} above. Keep one of them."
            )
    if missing:
        raise DataProblem(
            f"{path} names {len(missing)} of {len(rows)} images that are not in {data.folder}: {shortened(missing)}. "
            "Correct the names, remove these rows, or give another folder with --images."
        )
    if not truth:
        raise DataProblem(f"{path} holds no label. Write one row per image: its name, a comma, its label.")
    classes = sorted(set(truth.values()), key=natural_key)
    left = len(data.files) - len(truth)
    notes = (*data.notes, f"{left} images have no label in {path}; bots skip them") if left else data.notes
    return Dataset(data.folder, data.files, control, tuple(classes), truth, notes)


def _read_csv(path: Path) -> tuple[str, list[tuple[int, str, str]]]:
    """Name of the control, and (line, image, label) of each row."""
    wanted = "Its first line must be: image,NAME  where NAME is the control, for example image,digit"
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataProblem(f"There is no file {path}. Give --labels a CSV. {wanted}") from None
    except IsADirectoryError:
        raise DataProblem(f"{path} is a folder. Give --labels a CSV. {wanted}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataProblem(f"{path} cannot be read as UTF-8 text: {error}. Save it as CSV in UTF-8.") from None
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[tuple[int, str, str]] = []
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if len(header) != 2 or header.count(IMAGE_COLUMN) != 1 or not all(header):
            raise DataProblem(
                f"The first line of {path} is {','.join(header)!r}. {wanted}. "
                "One column of labels is served; keep one CSV per question."
            )
        column = header.index(IMAGE_COLUMN)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataProblem(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but {len(header)} in the first "
                    "line. Put texts that contain a comma in double quotes."
                )
            rows.append((reader.line_num, cells[column].strip(), cells[1 - column].strip()))
    except csv.Error as error:
        raise DataProblem(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    return header[1 - column], rows


def _index(files: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Every name under which a file may be called -> the files that it may mean."""
    index: dict[str, tuple[str, ...]] = {}
    for file in files:
        name = file.rpartition("/")[2]
        for key in {name, name.rpartition(".")[0]}:
            index[key] = (*index.get(key, ()), file)
    return index | {file: (file,) for file in files}  # the whole path is never ambiguous


def shortened(names: Sequence[str]) -> str:
    """The first few of many, for a message."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
