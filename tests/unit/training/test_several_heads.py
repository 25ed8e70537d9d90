"""Several questions about one pool: one version, a head for each, one order."""

import io

import numpy as np
import pytest
from PIL import Image

from training import api, pool_features
from training.answers import OneOf
from training.joint import Asking, Shown, as_log_probabilities, join
from training.linear import log_softmax
from training.targets import HeadSpec

POOL = 120
IDS = list(range(1, POOL + 1))
PIXELS = np.random.default_rng(0).integers(20, 235, (POOL, 6))
SIDE = {i: int(PIXELS[i - 1, 0] > PIXELS[i - 1, 1]) for i in IDS}
SHADE = {i: int(np.argmax(PIXELS[i - 1, 2:5])) for i in IDS}
SIDES = api.HeadSpec("side", "single", ("left", "right"))
SHADES = api.HeadSpec("shade", "single", ("red", "green", "blue"))


class Pixels:
    """Stands in for learnt features: six pixels."""

    id, width, input_size = "pixels", 6, 8

    def embed(self, images):
        return images[:, 0, :6, 0].astype(np.float32)

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.id)


def picture(example):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, :6] = PIXELS[example.example_id - 1]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_features.PoolFeatures, "learn", staticmethod(lambda sample, seed: Pixels()))
    monkeypatch.setattr(pool_features.PoolFeatures, "load", staticmethod(lambda path: Pixels()))
    found = api.ProjectModel(tmp_path / "home", api.ModelSpec())
    assert found.embed([api.Example(i, "") for i in IDS], picture).embedded == POOL
    return found


def of(truth, ids):
    return {i: truth[i] for i in ids}


def both(sides=tuple(IDS[:60]), shades=tuple(IDS[:60]), audit=tuple(IDS[60:80])):
    return [
        api.HeadLabels(SIDES, of(SIDE, sides), of(SIDE, audit)),
        api.HeadLabels(SHADES, of(SHADE, shades), of(SHADE, audit)),
    ]


def fit(model, heads=None, generation=1):
    return model.fit_heads(heads or both(), generation=generation, source={})


def rank(model, version, unlabelled=tuple(IDS), labelled=(), **changes):
    values = {
        "audit": lambda i: False,
        "strategy": "margin",
        "front": 20,
        "layers": api.Shares(explore=0, skips=False),
        "seed": 0,
    }
    return model.rank(version, unlabelled, labelled, **(values | changes))


# ---------------------------------------------------------------------- fitting
def test_each_head_is_what_it_would_be_alone(model):
    together = fit(model)
    for place, spec in enumerate((SIDES, SHADES)):
        labels = both()[place]
        alone = model.fit(
            api.LabelledSet(dict(labels.train), spec.classes),
            api.LabelledSet(dict(labels.audit), spec.classes),
            generation=10 + place,
            source={},
        )
        assert together.heads[place].metrics == alone.metrics
        expected = model.predict(alone.id, IDS).probabilities
        found = model.predict_heads(together.id, IDS)[place]
        np.testing.assert_array_equal(found.answer, expected.argmax(1))
        np.testing.assert_allclose(found.confidence, expected.max(1), rtol=1e-5)


def test_an_example_without_an_answer_says_nothing_to_that_head_and_teaches_the_other(model):
    info = fit(model, both(sides=IDS[:60], shades=IDS[:30]))
    assert [head.labels_used for head in info.heads] == [60, 30]
    alone = model.fit(
        api.LabelledSet(of(SHADE, IDS[:30]), SHADES.classes),
        api.LabelledSet({}, SHADES.classes),
        generation=9,
        source={},
    )
    found = model.predict_heads(info.id, IDS)[1].confidence
    np.testing.assert_allclose(found, model.predict(alone.id, IDS).probabilities.max(1), rtol=1e-5)


def test_a_question_that_nobody_answered_yet_has_a_head_that_knows_nothing(model):
    info = fit(model, both(shades=(), audit=()))
    side, shade = model.predict_heads(info.id, IDS)
    np.testing.assert_allclose(shade.confidence, 1 / 3, atol=1e-6)
    assert side.confidence.min() > 0.5


def test_without_any_label_there_is_no_version(model):
    with pytest.raises(api.NoTrainableExamples):
        fit(model, both(sides=(), shades=(), audit=()))


def test_a_target_of_another_question_is_refused_by_its_name(model):
    wrong = api.HeadLabels(SIDES, {1: 2}, {})
    with pytest.raises(api.DataError, match="'side', single"):
        fit(model, [wrong])


def test_a_second_fit_starts_where_each_head_ended(model):
    fit(model)
    more = fit(model, generation=2)
    again = fit(model, generation=3)
    assert [h.temperature for h in more.heads] == [h.temperature for h in again.heads]


# ---------------------------------------------------------------------- what is kept
def test_a_version_comes_back_with_all_heads_and_the_labels_of_each(model, tmp_path):
    info = fit(model, both(shades=IDS[:30]))
    other = api.ProjectModel(tmp_path / "home", api.ModelSpec())
    assert other.newest() == info
    assert other.newest().specs == (SIDES, SHADES)
    known = other.answers_of(info.id)
    assert known[1] == {"side": SIDES.classes[SIDE[1]], "shade": SHADES.classes[SHADE[1]]}
    assert known[45] == {"side": SIDES.classes[SIDE[45]]}
    assert other.labels_of(info.id) == {i: SIDES.classes[SIDE[i]] for i in IDS[:80]}


def test_a_version_of_the_first_releases_answers_the_one_question_of_a_project(model):
    old = model.fit(
        api.LabelledSet(of(SIDE, IDS[:60]), SIDES.classes), api.LabelledSet({}, SIDES.classes), generation=1, source={}
    )
    assert old.specs == (api.HeadSpec("", "single", SIDES.classes),)
    assert SIDES.answers_as(old.specs[0]) and not SHADES.answers_as(old.specs[0])
    assert old.is_plain and not fit(model, generation=2).is_plain


# ---------------------------------------------------------------------- the order
def test_both_questions_have_a_say_in_the_order(model):
    info = fit(model)
    outputs = {a.spec.name: a for a in model.predict_heads(info.id, IDS)}
    found = rank(model, info.id)
    assert sorted(found.example_ids.tolist()) == IDS
    front = found.example_ids[:20] - 1
    for name in ("side", "shade"):
        assert outputs[name].confidence[front].mean() < outputs[name].confidence.mean()
    expected = np.mean([a.confidence for a in outputs.values()], axis=0)[found.example_ids - 1]
    np.testing.assert_allclose(found.confidence, expected, rtol=1e-5)
    for answer in found.answers:
        np.testing.assert_array_equal(answer.answer, outputs[answer.spec.name].answer[found.example_ids - 1])


def test_the_question_with_all_the_weight_alone_decides(model):
    info = fit(model)
    shade = model.predict_heads(info.id, IDS)[1].confidence
    left = np.array(IDS[80:])
    found = rank(model, info.id, left.tolist(), IDS[:80], asking=api.Asking({"shade": 1e6}))
    assert set(found.worth.tolist()) == {1}
    assert "shade 100%" in found.note
    # Of three classes the least sure ones are not exactly those of least margin, but nearly.
    assert np.isin(found.example_ids[:10], left[np.argsort(shade[left - 1])][:20]).all()


def test_what_is_answered_least_counts_most(model):
    info = fit(model, both(shades=IDS[:20]))
    # Of 120 examples 40 and 80 lack an answer: 60 and 20 taught it, 20 measure it.
    assert "side 33%, shade 67%" in rank(model, info.id).note


def test_predictions_of_a_plain_version_are_ranked_as_ever(model):
    info = fit(model, both()[:1])
    found = rank(model, info.id)
    assert found.answers == () and found.worth is None and found.note == ""
    expected = model.predict(info.id, found.example_ids).probabilities.max(1)
    np.testing.assert_allclose(found.confidence, expected, rtol=1e-5)


# ---------------------------------------------------------------------- the gate
def test_a_version_that_turned_one_of_its_questions_round_is_kept_back(model):
    good = fit(model)
    assert model.judge_heads(good.id, both()).promoted
    turned = [both()[0], api.HeadLabels(SHADES, {i: (c + 1) % 3 for i, c in of(SHADE, IDS[:60]).items()}, {})]
    bad = fit(model, turned, generation=2)
    verdict = model.judge_heads(bad.id, both())
    assert not verdict.promoted and model.live().id == good.id
    sides, shades = verdict.comparison.questions
    assert sides == ("side", 0, 0) and shades[0] == "shade" and shades[2] > 5 * (1 + shades[1])
    assert "audit tasks it alone is right in all answers" in verdict.words
    assert f"shade {shades[1]} times (the live version {shades[2]})" in verdict.words
    assert model.verdict(bad.id) == verdict


def test_a_question_that_only_one_version_is_asked_does_not_count(model):
    assert model.judge_heads(fit(model, both()[:1]).id, both()).promoted
    compared = model.compare_heads(fit(model, generation=2).id, model.live().id, both())
    assert compared.examples == 20


# ---------------------------------------------------------------------- joining
def output(name, probabilities):
    classes = tuple(map(str, range(probabilities.shape[1])))
    return OneOf(HeadSpec(name, "single", classes), np.log(probabilities).astype(np.float32))


def joined(*outputs, asking=None, known=None):
    nothing = [np.zeros(len(o.log_probabilities), bool) for o in outputs]
    return join(outputs, [o.answers() for o in outputs], known or nothing, asking or Asking())


def test_a_question_counts_as_much_as_it_is_likely_to_be_asked():
    parent = output("parent", np.array([[0.99, 0.01], [0.01, 0.99], [0.3, 0.7]]))
    child = output("child", np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]))
    shown = Asking(shown={"child": (Shown("parent", (1,)),)})
    asked = joined(parent, child, asking=shown)
    # By the definition: a mean over questions with weights 1 and P(parent = 1).
    for row, (p, q) in enumerate([(0.99, 0.01), (0.99, 0.99), (0.7, 0.7)]):
        assert asked.confidence[row] == pytest.approx((p + q * 0.5) / (1 + q), abs=1e-5)
    assert asked.uncertainty[1] > asked.uncertainty[0]
    hidden = joined(parent, child, asking=Asking(shown={"child": (Shown("parent", (1,), chosen=False),)}))
    assert hidden.uncertainty[0] > hidden.uncertainty[1]


def test_an_answer_that_is_known_is_not_worth_asking_for():
    first = output("first", np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]))
    second = output("second", np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]))
    known = [np.array([False, True, True]), np.array([False, False, True])]
    found = joined(first, second, known=known, asking=Asking({"first": 1.0}))
    assert found.worth.tolist() == [0, 1, -1]
    np.testing.assert_allclose(found.uncertainty, [0.5 * (1 + 0.2), 0.5 * 0.2, 0], atol=1e-6)


def test_the_margin_that_strategies_see_is_the_joint_uncertainty():
    rng = np.random.default_rng(1)
    lead = output("a", np.exp(log_softmax(rng.normal(size=(50, 5)))))
    wanted = rng.random(50)
    seen = np.exp(as_log_probabilities(wanted, lead.log_probabilities).astype(np.float64))
    np.testing.assert_allclose(seen.sum(1), 1, atol=1e-5)
    top = np.sort(seen, axis=1)[:, ::-1]
    np.testing.assert_allclose(1 - (top[:, 0] - top[:, 1]), wanted, atol=1e-4)
    np.testing.assert_array_equal(seen.argmax(1), lead.log_probabilities.argmax(1))


# ---------------------------------------------------------------------- facts beside the picture
AGES = {i: float(20 + 60 * SIDE[i] + i % 7) for i in IDS}
GUESS = api.HeadSpec("guess", "single", ("no", "yes"), inputs=("age", "site"))
COIN = {i: int(np.random.default_rng(i).random() < 0.5) for i in IDS}  # nothing in the picture tells it


def with_facts(model, missing=()):
    site = [None if i in missing else ("back" if COIN[i] else "face") for i in IDS]
    model.write_inputs(IDS, {"site": site, "age": [None if i in missing else AGES[i] for i in IDS]})


def coin_labels(spec=GUESS):
    return [api.HeadLabels(spec, of(COIN, IDS[:60]), of(COIN, IDS[60:80]))]


def test_a_fact_tells_what_the_picture_does_not(model):
    blind = fit(model, coin_labels(api.HeadSpec("guess", "single", ("no", "yes"))))
    with_facts(model)
    seeing = fit(model, coin_labels(), generation=2)
    truth = np.array([COIN[i] for i in IDS[80:]])
    right = [np.mean(model.predict_heads(v.id, IDS[80:])[0].answer == truth) for v in (blind, seeing)]
    assert right[0] < 0.75 and right[1] == 1.0
    assert not seeing.is_plain
    np.testing.assert_array_equal(model.predict(seeing.id, IDS[80:]).probabilities.argmax(1), truth)
    ranked = rank(model, seeing.id)
    np.testing.assert_array_equal(ranked.answers[0].answer, [COIN[i] for i in ranked.example_ids.tolist()])


def test_a_missing_fact_leaves_the_picture(model):
    with_facts(model, missing=IDS[100:])
    spec = api.HeadSpec("side", "single", SIDES.classes, inputs=("age",))
    info = fit(model, [api.HeadLabels(spec, of(SIDE, IDS[:60]), {})])
    found = model.predict_heads(info.id, IDS[100:])[0]
    assert np.mean(found.answer == [SIDE[i] for i in IDS[100:]]) > 0.7
    assert np.isfinite(found.confidence).all()


@pytest.mark.parametrize("kind", ["single", "multiple", "ordered", "number"])
def test_without_any_fact_a_head_is_what_it_is_without_asking_for_them(model, kind):
    classes = () if kind == "number" else SIDES.classes
    target = {"multiple": lambda c: (c,), "number": float}.get(kind, int)
    plain, asking = (api.HeadSpec("q", kind, classes, inputs=inputs) for inputs in ((), ("age", "site")))
    train = {i: target(SIDE[i]) for i in IDS[:60]}
    one, other = (
        fit(model, [api.HeadLabels(spec, train, {})], generation=place) for place, spec in enumerate((plain, asking))
    )
    a, b = (model.predict_heads(v.id, IDS)[0] for v in (one, other))
    np.testing.assert_allclose(a.confidence, b.confidence, atol=2e-3)


def test_a_number_with_facts_has_the_spread_of_bayesian_regression(model):
    from training.answers import outputs_of

    with_facts(model)
    spec = api.HeadSpec("weight", "number", (), 0.0, 100.0, inputs=("age",))
    info = fit(model, [api.HeadLabels(spec, {i: AGES[i] + i % 3 for i in IDS[:40]}, {})])
    stored = model._load(info.id)
    encoded, _ = model.encoded_inputs(("age",), IDS)
    z = np.concatenate([model._current_view().space().coordinates(model.features(IDS)), encoded], axis=1).astype(float)
    rows = z[:40] - z[:40].mean(0)
    inverse = np.linalg.inv(rows.T @ rows + stored.state.regularisation * np.eye(z.shape[1]))
    away = z - z[:40].mean(0)
    variance = 1 + 1 / 40 + np.einsum("nd,de,ne->n", away, inverse, away)
    (found,) = outputs_of(stored, stored.head.logits(model.features(IDS)), [encoded])
    np.testing.assert_allclose(found.sd, 100 * stored.head.temperature * np.sqrt(variance), rtol=2e-3)


def test_facts_that_come_later_make_a_version_out_of_date(model):
    info = fit(model, coin_labels())
    assert not model.facts_changed(info.id)
    with_facts(model)
    assert model.facts_changed(info.id)
    assert not model.facts_changed(fit(model, coin_labels(), generation=2).id)


def test_a_second_fit_with_facts_starts_from_the_first_and_from_other_columns_too(model):
    with_facts(model)
    first = fit(model, coin_labels())
    again = fit(model, coin_labels(), generation=2)
    assert again.heads[0].temperature == first.heads[0].temperature
    model.write_inputs(IDS, {"site": [f"s{i % 5}" for i in IDS], "age": [None] * POOL})
    fit(model, coin_labels(), generation=3)


def test_a_version_with_facts_comes_back_with_how_they_are_encoded(model, tmp_path):
    with_facts(model)
    info = fit(model, [*both(), *coin_labels()])
    other = api.ProjectModel(tmp_path / "home", api.ModelSpec())
    assert other.newest() == info
    for mine, its in zip(model.predict_heads(info.id, IDS), other.predict_heads(info.id, IDS), strict=True):
        np.testing.assert_array_equal(mine.confidence, its.confidence)
