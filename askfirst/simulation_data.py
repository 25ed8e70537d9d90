"""Images and their labels for a simulation: read, embedded as the product embeds them, and put into one `Oracle`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training import api as training
from training import simulate

from .errors import DataProblem
from .sources import read_folder, shortened

IMAGE_COLUMNS = ("image", "image_id", "file", "filename", "file_name", "path", "name")


@dataclass(frozen=True)
class Labelled:
    """Which files there are, and what is known of each."""

    folder: Path
    files: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None
    notes: tuple[str, ...]


def read_labels(images: Path, table: Path | None, label: str | None, group: str | None) -> Labelled:
    """Files of a folder with labels from a CSV (any columns), or from the names of its folders.

    The column of the images is one of `IMAGE_COLUMNS`, else the first; the labels' is `label`, else the first other
    one. Images are named by path inside the folder, by file name, or by file name without ending.

    Raises: DataProblem.
    """
    data = read_folder(images)
    if table is None:
        if not data.truth:
            raise DataProblem(f"{images} holds no folder per class. Give --labels a CSV with the header image,label")
        if group is not None:
            raise DataProblem("--group names a column of the CSV: give --labels too")
        files = [f for f in data.files if f in data.truth]
        return Labelled(data.folder, tuple(files), tuple(data.truth[f] for f in files), None, data.notes)
    frame = _read_table(table)
    lower = {str(column).strip().lower(): str(column) for column in frame.columns}
    image_column = next((lower[name] for name in IMAGE_COLUMNS if name in lower), str(frame.columns[0]))
    label_column = label or next((str(c) for c in frame.columns if str(c) != image_column), None)
    for column in (label_column, group):
        if column is not None and column not in frame.columns:
            raise DataProblem(f"{table} has no column {column!r}; it has {', '.join(map(str, frame.columns))}")
    if label_column is None:
        raise DataProblem(f"{table} has one column only. Give a CSV with the header image,label")
    files_of = data.by_name()
    found, missing = {}, []
    for row in frame.to_dict("records"):
        name, value = str(row[image_column]).strip(), str(row[label_column]).strip()
        candidates = files_of.get(name, ())
        if len(candidates) > 1:
            raise DataProblem(f"{table}: {name!r} may be {shortened(candidates)}. Write the path inside {data.folder}.")
        if not candidates:
            missing.append(name)
        elif value:
            found[candidates[0]] = (value, str(row[group]) if group else "")
    if not found:
        raise DataProblem(f"{table} labels no image of {data.folder}; it names {shortened(missing)}")
    notes = list(data.notes)
    if missing:
        rows = f"1 row of {table} names" if len(missing) == 1 else f"{len(missing)} rows of {table} name"
        notes.append(f"{rows} no image of {data.folder}: {shortened(missing)}")
    if len(found) < len(data.files):
        notes.append(f"{len(data.files) - len(found)} images have no label and are left out")
    kinds = {value for value, _ in found.values()}
    if len(kinds) < 2:
        raise DataProblem(f"{table} knows one class only, {min(kinds)!r}: nothing to tell apart. Is --label right?")
    files = [f for f in data.files if f in found]
    return Labelled(
        data.folder,
        tuple(files),
        tuple(found[f][0] for f in files),
        tuple(found[f][1] for f in files) if group else None,
        tuple(notes),
    )


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path.expanduser(), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataProblem(f"There is no file {path}. Give --labels a CSV with the header image,label") from None
    except (IsADirectoryError, PermissionError) as error:
        raise DataProblem(f"{path} cannot be read: {error.strerror}. Give --labels a CSV file.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataProblem(f"{path} is not a CSV in UTF-8: {error}") from None


def embed(
    data: Labelled, spec: training.ModelSpec, work: Path, progress: Callable[[int, int], None]
) -> tuple[simulate.Oracle, dict[str, str]]:
    """Embed the images into `work` (what is there already is not done again) and put labels to them.

    Returns the oracle, and why images were left out, by file.
    Raises: DataProblem: fewer than two classes are left.
    """
    folder = hashlib.sha256(f"{data.folder}\n{chr(10).join(data.files)}".encode()).hexdigest()[:12]
    model = training.ProjectModel(work / folder, spec)
    examples = [training.Example(i, file) for i, file in enumerate(data.files, start=1)]
    report = model.embed(examples, lambda e: (data.folder / e.uri).read_bytes(), progress=progress)
    ids = model.embedded_ids()
    rows = [int(i) - 1 for i in ids]
    unreadable = {data.files[i - 1]: reason for i, reason in report.unreadable.items()}
    oracle = oracle_of(
        model.features(ids),
        [data.labels[row] for row in rows],
        None if data.groups is None else [data.groups[row] for row in rows],
        [data.files[row] for row in rows],
    )
    return oracle, unreadable


def of_project(model: training.ProjectModel) -> simulate.Oracle:
    """The labels that a live project has, on its own embeddings.

    Of several questions those to the first are replayed.

    Raises: DataProblem: there are none, or they are not of one class each.
    """
    newest = model.newest()
    if newest is not None and newest.specs[0].kind not in ("single", "ordered"):
        name = newest.specs[0].name
        raise DataProblem(f"the first question, {name!r}, has other answers than one class: nothing to replay")
    labels = {} if newest is None else model.labels_of(newest.id)
    ids = np.array(sorted(labels.keys() & set(model.embedded_ids().tolist())), np.int64)
    if not len(ids):
        raise DataProblem("the project has no labels that were learnt yet: label some, then simulate")
    return oracle_of(model.features(ids), [labels[int(i)] for i in ids], None, [str(i) for i in ids.tolist()])


def oracle_of(
    features: NDArray[np.floating], names: list[str], groups: list[str] | None, examples: list[str] | None = None
) -> simulate.Oracle:
    """Embeddings [N, D] with the class name of each row, the name of its group, and what it is called itself.

    Raises: DataProblem: fewer than two classes.
    """
    classes, index = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
    if len(classes) < 2:
        raise DataProblem(f"there is one class only, {str(classes[0])!r}: nothing to tell apart")
    group = None if groups is None else np.unique(np.array(groups, dtype=np.str_), return_inverse=True)[1]
    return simulate.Oracle(
        features,
        index.astype(np.int64),
        tuple(classes.tolist()),
        None if group is None else group.astype(np.int64),
        names=None if examples is None else np.array(examples, dtype=np.str_),
    )
