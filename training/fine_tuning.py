"""A project's own network: the backbone of the settings, fine-tuned on the project's labels, as a representation.

    labels of all heads + pictures --tune--> weights --add_tuned--> a representation that nothing uses yet

n  labelled examples    C  classes of a head
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from . import tuning
from .answers import AnyOf, OneOf, Output
from .cores import usable_cores
from .embedding_table import as_ids
from .errors import DataError, NoTrainableExamples, TrainingStopped
from .files import write_bytes
from .inputs import InputSchema, InputTable
from .pool_view import SELECTION_DIMS, PoolView
from .representation import Representation, Representations
from .targets import HeadLabels, HeadSpec, Target
from .values import Example

Ids = NDArray[np.int64]

TAUGHT = "taught.npz"  # in the folder of a run: what its teacher said
_DUPLICATE = 0.98  # cosine above which examples are one group: neither split nor mixed


@dataclass(frozen=True)
class FineTuned:
    """What a run of fine-tuning left."""

    representation: Representation
    reason: str  # why the run ended
    best_epoch: int  # whose weights were kept; 0: those of the start
    epochs: tuple[tuning.Epoch, ...]
    held_out: int  # labelled examples that the run was stopped by
    unreadable: Mapping[int, str]
    cut_short: bool  # out of time

    @property
    def learnt(self) -> bool:
        """Whether any epoch was better on the held-out examples than the network it started from."""
        return self.best_epoch > 0


def fine_tune(
    representations: Representations,
    view: PoolView,
    heads: Sequence[HeadLabels],
    examples: Sequence[Example],
    load: Callable[[Example], bytes],
    settings: tuning.TuneSettings,
    folder: Path,
    *,
    facts: InputTable | None = None,
    groups: Mapping[int, str] | None = None,
    teach: Callable[[], tuning.Teacher] | None = None,
    masks: Path | None = None,
    on_step: tuning.OnStep = lambda step: None,
    on_epoch: tuning.OnEpoch = lambda epoch: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FineTuned:
    """Tune the backbone of the settings, from its trained weights each time, on the labels of all heads together.

    Args:
        heads: what is trained on; audit labels are left out.
        examples: of the pool; those without a label are not looked at.
        folder: of this run: checkpoints, and in the end the network. A run that was killed goes on from here.
        facts: of the whole pool; heads that name some look at them through FiLM.
        groups: example id -> group that is not split between training and stopping; near-duplicates without it.
        teach: what another model says of examples without a label, which the network learns too. Asked once a run:
            what it said is kept in `folder`, since a run that goes on must be told the same.
        masks: folder of masks for mixing by object, see `tuning.MaskFolder`; saliency for images without one.
    Raises:
        NoTrainableExamples; DataError: fewer GPUs than asked for; ProcessKilled: one of several.
        WeightsUnusable; TrainingDiverged; OutOfMemory; TrainingStopped: by `should_stop`.
    """
    if settings.devices > 1:
        check_devices(settings.devices)  # before any picture is loaded
    audited = {i for labels in heads for i in labels.audit}
    ids = sorted({i for labels in heads for i in labels.train} - audited)
    by_id = {example.example_id: example for example in examples}
    ids = [i for i in ids if i in by_id]
    if not ids:
        raise NoTrainableExamples(labelled=len({i for labels in heads for i in labels.train}), embedded=0)
    start = representations.start()
    size = settings.input_size or start.input_size
    asked = [labels for labels in heads if labels.train]
    teacher = None if teach is None else _kept_teacher(folder / TAUGHT, teach, asked, by_id.keys() - set(ids) - audited)
    shown = ids if teacher is None else [*ids, *teacher.ids.tolist()]
    mixes = settings.mixing in tuning.WITH_MASKS
    drawn = tuning.MaskFolder(masks, {i: by_id[i].uri for i in shown}) if mixes and masks is not None else None
    pictures = tuning.Pictures.decoded(
        shown,
        lambda i: load(by_id[i]),
        tuning.side_for(size),
        masks=drawn,
        with_masks=mixes,
        folder=folder / "pictures",
        # Other processes cannot load a picture: they map the file that all are in.
        budget_bytes=tuning.BUDGET_BYTES if settings.devices == 1 else None,
        should_stop=should_stop,
    )
    if should_stop():  # what was not reached by then passes for unreadable
        raise TrainingStopped
    labelled = tuning.Examples(
        as_ids(ids),
        {head_name(labels.spec): answers_of(labels, ids) for labels in asked},
        _facts_of(asked, facts, as_ids(ids)),
        _groups(view, ids, groups),
    )
    tuned = tuning.tune(
        start,
        [head_of(labels.spec, facts is not None) for labels in asked],
        labelled,
        pictures,
        settings,
        pool=None if teacher is None else tuning.Examples(teacher.ids, {}, _facts_of(asked, facts, teacher.ids)),
        teacher=teacher,
        folder=folder / "run",
        on_step=on_step,
        on_epoch=on_epoch,
        should_stop=should_stop,
    )
    if tuned.reason == tuning.CANCELLED:
        raise TrainingStopped
    weights = tuned.save(folder / "network")
    learnt_from = np.setdiff1d(as_ids(ids), np.concatenate([as_ids(tuned.held_out), as_ids(list(tuned.unreadable))]))
    facts_told = sorted({name for labels in asked for name in labels.spec.inputs}) if facts is not None else []
    note = _note(
        tuned,
        settings,
        f"{len(learnt_from):,} labels of this project",
        teacher is not None and f"what the model before it said of {len(teacher.ids):,} other images",
        len(asked) > 1 and f"{len(asked)} questions together ({', '.join(head_name(h.spec) for h in asked)})",
        bool(facts_told) and f"the fields {', '.join(facts_told)}",
        drawn is not None and f"masks of {len(drawn.read):,} of {len(shown):,} images",
    )
    return FineTuned(
        representations.add_tuned(weights, tuned.architecture, note, learnt_from, settings.flips),
        tuned.reason,
        tuned.best_epoch,
        tuned.history,
        len(tuned.held_out),
        tuned.unreadable,
        tuned.cut_short,
    )


def _note(tuned: tuning.Tuned, settings: tuning.TuneSettings, *learnt_from: str | bool) -> str:
    """One sentence for people; of `learnt_from` what is not False."""
    views = {"none": "", "horizontal": ", mean of 2 views", "both": ", mean of 4 views"}[settings.flips]
    back = f", mixed with {tuned.start_share:.0%} of the start's weights" if tuned.start_share else ""
    short = f"; {tuned.reason}" if tuned.cut_short else ""
    return (
        f"Features of {tuned.architecture} at {tuned.input_size} px{views}, fine-tuned on "
        f"{', '.join(str(part) for part in learnt_from if part)} "
        f"({tuned.best_epoch} of {settings.epochs} epochs{back}{short})."
    )


def check_devices(count: int) -> str:
    """What a run on so many devices would compute with, for people. Raises DataError: there are fewer."""
    kind = tuning.kind_of_several(tuning.TuneSettings(devices=count))
    if kind == "cuda":
        return f"{count} GPUs fine-tune together"
    if count > usable_cores():
        cores = usable_cores()
        raise DataError(f"fine-tuning was asked for in {count} processes, and there are {cores} cores: ask for no more")
    return f"{count} processes fine-tune together on the CPU; on a small machine one is faster"


def teacher_of(ids: Ids, outputs: Sequence[Output]) -> tuning.Teacher:
    """What heads say of n examples, for a network to learn; numbers are left out."""
    told: dict[str, NDArray[np.float32]] = {}
    for output in outputs:
        if isinstance(output, OneOf):
            told[head_name(output.spec)] = np.exp(output.log_probabilities)
        elif isinstance(output, AnyOf):
            told[head_name(output.spec)] = output.probabilities
    return tuning.Teacher(ids, told)


def _kept_teacher(
    path: Path, teach: Callable[[], tuning.Teacher], asked: Sequence[HeadLabels], others: Set[int]
) -> tuning.Teacher | None:
    """What a teacher says of `others` to the questions `asked`, now or when the run began; None for nothing."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            found = tuning.Teacher(kept["ids"], {name[1:]: kept[name] for name in kept.files if name != "ids"})
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # none yet, or not whole
        found = teach()
        part = io.BytesIO()
        arrays: dict[str, Any] = {f"/{name}": told for name, told in found.probabilities.items()}
        np.savez(part, ids=found.ids, **arrays)
        write_bytes(path, part.getvalue())
    here = np.isin(found.ids, as_ids(sorted(others)))
    width = {head_name(labels.spec): len(labels.spec.classes) for labels in asked}
    told = {name: values[here] for name, values in found.probabilities.items() if width.get(name) == values.shape[1]}
    return tuning.Teacher(found.ids[here], told) if told and here.any() else None


def _facts_of(asked: Sequence[HeadLabels], facts: InputTable | None, ids: Ids) -> dict[str, NDArray[np.float32]]:
    """Facts of n examples as each head that wants some looks at them, [n, E]."""
    if facts is None:
        return {}
    return {
        head_name(labels.spec): InputSchema.learn(facts, labels.spec.inputs).encode(facts, ids)
        for labels in asked
        if labels.spec.inputs
    }


def head_name(spec: HeadSpec) -> str:
    """A name for every head: that of a project with one question may have none."""
    return spec.name or "label"


def head_of(spec: HeadSpec, with_facts: bool) -> tuning.HeadSpec:
    """The question as fine-tuning asks it; the facts that it names come as one input under its own name."""
    name = head_name(spec)
    kind = "ordinal" if spec.kind == "ordered" else spec.kind
    return tuning.HeadSpec(name, kind, spec.classes, inputs=(name,) if spec.inputs and with_facts else ())


def answers_of(labels: HeadLabels, ids: Sequence[int]) -> NDArray[Any]:
    """Targets of some examples as `tuning.Examples` holds them: -1 or NaN where there is none."""
    known: Mapping[int, Target] = labels.train
    if labels.spec.kind == "multiple":
        chosen = np.full((len(ids), len(labels.spec.classes)), np.nan, np.float32)
        for row, i in enumerate(ids):
            target = known.get(i)
            if isinstance(target, tuple):
                chosen[row] = 0
                chosen[row, list(target)] = 1
        return chosen
    if labels.spec.kind == "number":
        return np.array([known.get(i, np.nan) for i in ids], np.float32)
    return np.array([known.get(i, -1) for i in ids], np.int64)


def _groups(view: PoolView, ids: Sequence[int], given: Mapping[int, str] | None) -> Ids:
    """[n] group of each example, all different but for near-duplicates and what was given as one."""
    from uncertainty.duplicates import near_duplicate_groups

    if given is not None:
        names = [given.get(i) or f"\0{i}" for i in ids]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)
    group = np.full(len(ids), -1, np.int64)
    known = view.table.known(as_ids(ids))
    if known.any():
        rows = view.space().reduced(view.rows(as_ids(ids)[known]), SELECTION_DIMS)
        group[known] = near_duplicate_groups(rows, _DUPLICATE)
    alone = group < 0
    group[alone] = group.max(initial=-1) + 1 + np.arange(int(alone.sum()))
    return group
