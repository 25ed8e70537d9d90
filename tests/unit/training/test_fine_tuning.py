"""A fine-tuned network as a representation of a project: made beside the one in use, put into use with a version."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from training import api
from training.answers import Amount, AnyOf, OneOf
from training.backbones import feature_extractor
from training.errors import NoTrainableExamples, TrainingStopped, VersionMissing
from training.fine_tuning import answers_of, head_of, teacher_of
from training.tuning import checkpoint

NAMES = tuple("0123456789")
POOL = 120
BACKBONE = "shufflenet_v2_x0_5"  # the smallest of torchvision's


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that nobody trained: what is tested is what happens to it, not what it knows."""
    path = tmp_path_factory.mktemp("weights") / "start.pth"
    torch.manual_seed(0)
    torch.save(feature_extractor(BACKBONE).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def digits():
    images, answers = load_digits(return_X_y=True)
    return np.kron(images[:POOL].reshape(-1, 8, 8), np.ones((4, 4))).astype(np.uint8) * 15, answers[:POOL].tolist()


@pytest.fixture
def load(digits):
    import io

    def bytes_of(example):
        buffer = io.BytesIO()
        Image.fromarray(digits[0][example.example_id - 1]).save(buffer, "PNG")
        return buffer.getvalue()

    return bytes_of


@pytest.fixture
def project(tmp_path, weights, engines, digits, load):
    """A pool of 120 digits, 60 labelled, 30 in the audit slice, and a live version."""

    class Project:
        spec = api.ModelSpec(
            backbone=BACKBONE,
            weights=str(weights),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            input_size=32,
            engines_dir=engines,
        )
        examples = tuple(api.Example(i, "") for i in range(1, POOL + 1))
        train, audit = ({i: digits[1][i - 1] for i in ids} for ids in (range(1, 61), range(61, 91)))
        heads = (api.HeadLabels(api.HeadSpec(classes=NAMES), train, audit),)
        settings = api.TuneSettings(
            epochs=2, fewest_steps=0, batch_size=15, held_out=0.0, mixing="none", augmentation="none", threads=1,
            accelerator="cpu", precision="32", input_size=32, lr_trunk=1e-3,
        )  # fmt: skip
        folder = tmp_path / "run"

        def __init__(self):
            self.load = load
            self.home = tmp_path / "home"
            self.model = self.again()
            self.model.embed(self.examples, load)
            self.first = self.model.fit_heads(self.heads, generation=1, source={}).id
            self.model.promote(self.first)

        def again(self, **changes):
            return api.ProjectModel(self.home, replace(self.spec, **changes))

        def tune(self, **changes):
            return self.model.fine_tune(self.heads, self.examples, load, replace(self.settings, **changes), self.folder)

        def take_over(self):
            tuned = self.tune().representation.id
            self.model.embed_in(tuned, self.examples, load)
            version = self.model.fit_heads(self.heads, generation=2, source={}, representation=tuned).id
            self.model.promote(version)
            return tuned, version

    return Project()


def test_a_run_changes_nothing_that_is_in_use(project):
    before = project.model.representation()
    found = project.tune()
    assert found.best_epoch == 2 and found.representation.kind == "tuned" and "60 labels" in found.representation.note
    assert project.model.representation() == before and project.model.live().id == project.first
    assert found.representation.id != before.id and found.representation.width == before.width


def test_what_was_not_embedded_by_the_new_network_is_not_known_to_its_versions(project, load):
    tuned = project.tune().representation.id
    project.model.embed_in(tuned, project.examples[:90], load)
    version = project.model.fit_heads(project.heads, generation=2, source={}, representation=tuned).id
    assert project.model.predict(version, [1, 90, 91]).known.tolist() == [True, True, False]
    assert project.model.predict(project.first, [91]).known.all()


def test_with_a_version_its_network_goes_live_for_every_process(project, load):
    tuned, version = project.take_over()
    other = project.again()
    assert other.representation().id == tuned and other.live().id == version
    assert (
        other.embed([*project.examples, api.Example(POOL + 1, "")], lambda e: load(project.examples[0])).embedded == 1
    )
    assert other.predict(version, [POOL + 1]).known.all()


def test_images_that_may_be_turned_over_are_seen_so_by_a_network_of_ones_own_in_every_process(project, digits):
    tuned = project.tune(flips="horizontal").representation
    assert "mean of 2 views" in tuned.note
    project.model.embed_in(tuned.id, project.examples, project.load)
    version = project.model.fit_heads(project.heads, generation=2, source={}, representation=tuned.id).id
    project.model.promote(version)
    digits[0][0] = digits[0][0][:, ::-1].copy()  # the picture of the new example: the first one's mirror image
    other = project.again()
    assert other.embed([*project.examples, api.Example(POOL + 1, "new")], lambda e: project.load(project.examples[0]))
    first, mirrored = other.features([1, POOL + 1])
    digits[0][0] = digits[0][0][:, ::-1].copy()
    assert other.representation() == tuned
    assert np.abs(first - mirrored).max() < 2e-3 * np.abs(first).max()


def test_what_is_kept_has_its_share_of_the_start_and_says_so(project, weights, monkeypatch):
    monkeypatch.setattr(checkpoint.Progress, "is_best", lambda progress, found: True)
    far, back = (project.tune(held_out=0.4, start_share=share) for share in (0.0, 0.5))
    assert "50% of the start's weights" in back.representation.note and "start" not in far.representation.note
    begun = torch.load(weights, weights_only=True)
    went, kept = (
        load_file(project.home / "pool" / found.representation.id / "network" / f"{BACKBONE}.safetensors")
        for found in (far, back)
    )
    moved = [name for name in went if went[name].is_floating_point() and not torch.equal(went[name], begun[name])]
    assert moved
    for name in moved:
        assert torch.allclose(kept[name], (begun[name] + went[name]) / 2, atol=1e-6), name


def test_mixing_by_object_takes_the_masks_of_a_folder_and_says_for_how_many_images(project, tmp_path):
    drawn, names = np.zeros((8, 8), np.uint8), {1: "one", 2: "empty", 3: "text", 4: "folder"}
    for name, pixels in (("one", drawn + np.eye(8, dtype=np.uint8)), ("empty", drawn)):
        Image.fromarray(pixels).save(tmp_path / f"{name}_mask.png")
    (tmp_path / "text_mask.png").write_text("no image")
    (tmp_path / "folder_mask.png").mkdir()
    examples = [replace(e, uri=f"/images/{names.get(e.example_id, '')}.png") for e in project.examples]
    found = project.model.fine_tune(
        project.heads, examples, project.load, replace(project.settings, mixing="cutmix-object"), project.folder,
        masks=tmp_path,
    )  # fmt: skip
    assert "masks of 1 of 60 images" in found.representation.note


def test_rolling_back_brings_back_the_network_and_its_embeddings(project):
    before = project.model.representation().id
    project.take_over()
    assert project.model.roll_back().id == project.first
    assert project.model.representation().id == before
    assert project.again().fit_heads(project.heads, generation=3, source={}).representation == before


def test_other_weights_in_the_settings_end_the_reign_of_the_tuned_network(project, load, weights, tmp_path):
    project.take_over()
    other = tmp_path / "other.pth"
    torch.manual_seed(1)
    torch.save(feature_extractor(BACKBONE).state_dict(), other)
    model = project.again(weights=str(other))
    model.embed(project.examples, load)
    assert model.representation().kind == "backbone"
    assert project.again().representation().id == model.representation().id


def test_without_weights_there_is_nothing_to_start_from(project):
    assert project.model.can_fine_tune()
    assert not project.again(weights=None).can_fine_tune()


def test_what_is_dropped_is_gone_and_what_is_in_use_stays(project):
    tuned = project.tune().representation.id
    project.model.drop_representation(tuned)
    with pytest.raises(NoTrainableExamples):
        project.model.fit_heads(project.heads, generation=2, source={}, representation=tuned)
    in_use = project.model.representation().id
    project.model.drop_representation(in_use)
    assert project.model.predict(project.first, [1]).known.all()


def test_a_network_in_the_making_outlives_every_clearing_up_and_ends_with_its_run(project):
    """Refreshes clear up while a pool is embedded by the new network, for hours where the pool is large."""
    tuned = project.tune().representation.id
    project.again().prune(keep=1)
    project.model.embed_in(tuned, project.examples, project.load)
    version = project.model.fit_heads(project.heads, generation=2, source={}, representation=tuned).id
    for generation in (3, 4, 5):  # what is learnt on the old features meanwhile
        project.model.fit_heads(project.heads, generation=generation, source={})
    assert version in project.again().prune(keep=1)
    project.model.fit_heads(project.heads, generation=6, source={}, representation=tuned)
    project.model.end_fine_tuning()
    project.again().prune(keep=5)
    assert project.again().embed_in(tuned, project.examples, project.load).skipped == POOL  # a version needs it
    project.again().prune(keep=0)
    with pytest.raises(VersionMissing):
        project.model.embed_in(tuned, project.examples, project.load)


def test_groups_that_people_gave_are_kept_whole(project, monkeypatch):
    from training import fine_tuning

    seen = []
    monkeypatch.setattr(fine_tuning.tuning, "tune", lambda start, heads, labelled, *rest, **more: seen.append(labelled))
    with pytest.raises(AttributeError):  # what stands in returns nothing
        project.model.fine_tune(
            project.heads,
            project.examples,
            project.load,
            project.settings,
            project.folder,
            groups={i: f"lesion {i // 10}" for i in project.train},
        )
    (labelled,) = seen
    together = [{int(i) // 10 for i in labelled.ids[labelled.groups == group]} for group in set(labelled.groups)]
    assert len(together) == 7 and all(len(tens) == 1 for tens in together)
    assert not set(labelled.ids.tolist()) & project.audit.keys()


@pytest.mark.parametrize(
    ("kind", "classes", "targets", "expected"),
    [
        ("single", ("a", "b"), {2: 1}, [-1, 1, -1]),
        ("ordered", ("1", "2", "3"), {1: 2, 3: 0}, [2, -1, 0]),
        ("number", (), {2: 2.5}, [np.nan, 2.5, np.nan]),
        ("multiple", ("a", "b", "c"), {1: (), 3: (0, 2)}, [[0, 0, 0], [np.nan] * 3, [1, 0, 1]]),
    ],
)
def test_answers_of_every_kind_say_what_is_known_and_what_is_not(kind, classes, targets, expected):
    labels = api.HeadLabels(api.HeadSpec("q", kind, classes), targets, {})
    np.testing.assert_array_equal(answers_of(labels, [1, 2, 3]), np.array(expected))
    asked = head_of(labels.spec, with_facts=True)
    assert (asked.name, asked.width) == ("q", {"number": 1}.get(kind, len(classes)))


def test_facts_that_a_question_names_come_with_its_examples(project, monkeypatch):
    from training import fine_tuning

    seen = []

    def look(start, heads, labelled, *rest, **more):
        seen.append((heads, labelled))

    monkeypatch.setattr(fine_tuning.tuning, "tune", look)
    ids = [example.example_id for example in project.examples]
    project.model.write_inputs(ids, {"age": [None if i % 4 == 0 else i for i in ids]})
    spec = api.HeadSpec("digit", "single", NAMES, inputs=("age",))
    with pytest.raises(AttributeError):  # what stands in returns nothing
        project.model.fine_tune(
            [api.HeadLabels(spec, project.train, project.audit)],
            project.examples,
            project.load,
            project.settings,
            project.folder,
        )
    ((head,), labelled) = seen[0]
    assert head.inputs == ("digit",)
    assert labelled.inputs["digit"].shape == (60, 2)  # the age, and whether it is missing
    assert (labelled.inputs["digit"][:, 1] > 0).sum() == 15  # centred over the pool


def test_the_first_layers_stay_as_they_came(project, weights):
    project.tune(frozen_layers=0.5)
    (path,) = (project.folder / "network").glob(f"{BACKBONE}.safetensors")
    start, found = torch.load(weights), load_file(path)
    learnt = [name for name in start if start[name].is_floating_point() and "running" not in name]
    same = [torch.equal(start[name], found[name]) for name in learnt]
    cut = same.index(False)
    assert all(same[:cut]) and not any(same[cut:])
    assert 0.4 * len(learnt) < cut < 0.6 * len(learnt)


def test_a_head_is_not_measured_by_what_its_network_learnt_from(project, monkeypatch):
    from training import head_fits

    settings = replace(project.settings, held_out=0.4)
    each = {i: str(i) for i in project.train}
    tuned = project.model.fine_tune(
        project.heads, project.examples, project.load, settings, project.folder, groups=each
    )
    project.model.embed_in(tuned.representation.id, project.examples, project.load)
    seen = []
    fit_head = head_fits.fit_head
    monkeypatch.setattr(head_fits, "fit_head", lambda *a, **more: (seen.append(more["seen"]), fit_head(*a, **more))[1])
    project.model.fit_heads(project.heads, generation=2, source={}, representation=tuned.representation.id)
    project.again().fit_heads(project.heads, generation=3, source={})
    assert seen[0].sum() == 60 - tuned.held_out and tuned.held_out == 24
    assert not seen[1].any()  # a network that came as it is learnt from none of them


@pytest.mark.parametrize("after", [0, 3, 65])
def test_a_run_that_is_stopped_leaves_no_network_and_is_not_taken_for_one_that_failed(project, after):
    """While pictures are loaded (there are sixty), and later between two steps."""
    asked = []

    def stop():
        asked.append(True)
        return len(asked) > after

    with pytest.raises(TrainingStopped):
        project.model.fine_tune(
            project.heads, project.examples, project.load, project.settings, project.folder, should_stop=stop
        )
    kinds = {path.name for path in (project.home / "pool").iterdir() if path.is_dir()}
    assert kinds == {project.model.representation().id}


def test_a_run_that_ran_out_of_time_says_so_in_its_note(project):
    found = project.tune(time_limit_s=1e-6, held_out=0.4)
    assert "the time limit of 1e-06 s was reached" in found.representation.note
    assert "time limit" not in project.tune().representation.note


class Asked(Exception):
    """Stands for a run: the test looks at what it was given."""


@pytest.fixture
def given(monkeypatch):
    from training import fine_tuning

    seen = []

    def look(start, heads, labelled, pictures, settings, **more):
        seen.append((pictures, more["pool"], more["teacher"]))
        raise Asked

    monkeypatch.setattr(fine_tuning.tuning, "tune", look)
    return seen


def run_with(project, teach):
    with pytest.raises(Asked):
        project.model.fine_tune(
            project.heads, project.examples, project.load, project.settings, project.folder, teach=teach
        )


def test_a_version_teaches_what_it_says_of_images_without_a_label(project, given):
    unlabelled = list(range(91, 121))
    run_with(project, lambda: project.model.teacher(project.first, range(1, POOL + 5)))
    pictures, pool, teacher = given[0]
    assert teacher.ids.tolist() == pool.ids.tolist() == unlabelled  # neither those of the labels nor of the audit slice
    assert pictures.readable(pool.ids).all()
    expected = project.model.predict(project.first, unlabelled).probabilities
    assert teacher.probabilities["label"] == pytest.approx(expected, abs=1e-6)


def test_a_run_that_goes_on_is_told_what_it_was_told_at_first(project, given):
    run_with(project, lambda: project.model.teacher(project.first, range(91, 121)))
    run_with(project, lambda: pytest.fail("asked again"))
    (_, _, first), (_, _, again) = given
    assert (first.ids == again.ids).all() and (first.probabilities["label"] == again.probabilities["label"]).all()


def test_a_file_of_what_was_told_that_is_not_whole_is_made_anew(project, given):
    run_with(project, lambda: project.model.teacher(project.first, range(91, 121)))
    path = project.folder / "taught.npz"
    path.write_bytes(path.read_bytes()[:200])
    run_with(project, lambda: project.model.teacher(project.first, range(91, 100)))
    assert len(given[0][2].ids) == 30 and len(given[1][2].ids) == 9


def test_a_teacher_of_other_classes_is_not_listened_to(project, given):
    other = api.HeadLabels(api.HeadSpec(classes=("even", "odd")), {i: i % 2 for i in range(1, 61)}, {})
    version = project.model.fit_heads([other], generation=2, source={}).id
    run_with(project, lambda: project.model.teacher(version, range(91, 121)))
    assert given[0][1:] == (None, None)


def test_what_was_taught_is_told_with_the_network(project):
    found = project.model.fine_tune(
        project.heads,
        project.examples,
        project.load,
        project.settings,
        project.folder,
        teach=lambda: project.model.teacher(project.first, range(91, 121)),
    )
    assert "on 60 labels of this project, what the model before it said of 30 other images" in found.representation.note


def test_every_kind_of_answer_teaches_but_numbers():
    tags, size = api.HeadSpec("tags", "multiple", ("x", "y")), api.HeadSpec("size", "number", low=0, high=9)
    stars = api.HeadSpec("stars", "ordered", ("1", "2"))
    likely = np.array([[0.9, 0.2]], np.float32)
    outputs = [AnyOf(tags, likely), OneOf(stars, np.log(likely)), Amount(size, np.ones(1), np.ones(1), 0, 9)]
    told = teacher_of(np.array([7]), outputs).probabilities
    assert told.keys() == {"tags", "stars"}
    assert all(values == pytest.approx(likely) for values in told.values())
