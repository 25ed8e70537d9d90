"""A confidence is only called better when it is."""

import numpy as np
import pytest
from scipy.special import softmax

from uncertainty import confidence
from uncertainty.confidence import ConfidenceInfo, Outputs, fit, register_confidence
from uncertainty.confidence_comparison import MIN_ERRORS, MIN_EXAMPLES, compare
from uncertainty.errors import NotFittedError, ShapeError, UnknownMethodError
from uncertainty.selective import aurc, mean_ranks


def stated(n, C=5, seed=0):
    """Labels drawn from the stated probabilities: nothing can rank errors better than the likeliest probability."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, C))
    probabilities = softmax(logits, axis=1)
    labels = (probabilities.cumsum(1) > rng.random((n, 1))).argmax(1)
    return Outputs(probabilities, logits, None, rng.random(n)), probabilities.argmax(1) == labels


def test_a_number_that_knows_more_is_found_and_its_gain_is_the_fall_of_the_area():
    out, correct = stated(200)
    knows = Outputs(out.probabilities, out.logits, None, correct + 0.1 * out.probabilities.max(1))
    found = compare(knows, correct)
    assert found.best == "label_agreement"
    rival = found.rivals["label_agreement"]
    assert rival.gain == pytest.approx(aurc(out.probabilities.max(1), correct) - aurc(knows.agreement, correct))
    assert 0 < rival.low < rival.gain < rival.high


def test_a_norm_that_helps_is_found_and_helps_on_fresh_examples():
    def norm_helps(seed, n=400, C=6):
        # Logits of an uninformative scale: which answer is right shows in their shape only.
        rng = np.random.default_rng(seed)
        correct = rng.random(n) < 0.7
        logits = rng.normal(size=(n, C))
        logits[:, 0] += np.where(correct, 4, 1.5)
        return Outputs.of_logits(logits * np.exp(2 * rng.normal(size=(n, 1)))), correct

    out, correct = norm_helps(0)
    assert compare(out, correct).best == "max_logit_pnorm"
    fresh, fresh_correct = norm_helps(1)
    chosen = fit("max_logit_pnorm", out, correct).of(fresh)
    assert aurc(chosen, fresh_correct) < aurc(fresh.probabilities.max(1), fresh_correct)


def test_a_confidence_that_remembers_its_examples_gains_nothing(monkeypatch):
    def memory(out, parameter):
        return np.isin(out.probabilities[:, 0], seen[parameter]).astype(float)

    def remember(out, correct):
        seen.append(out.probabilities[correct, 0])
        return len(seen) - 1

    seen = []
    monkeypatch.setattr(confidence._CONFIDENCES, "_known", dict(confidence._CONFIDENCES._known))
    register_confidence(ConfidenceInfo("memory", memory, "what it saw", "", fit=remember))
    out, correct = stated(300)
    found = compare(out, correct, names=["memory"])
    assert aurc(fit("memory", out, correct).of(out), correct) < 0.2  # perfect on what it saw
    assert found.best == "msp" and found.rivals["memory"].aurc > 0.9 * (1 - correct.mean())


def test_where_nothing_can_be_better_hardly_anything_is_claimed():
    claimed = [compare(*stated(150, seed=seed), seed=seed).best != "msp" for seed in range(60)]
    assert sum(claimed) <= 3


def test_of_many_that_are_as_good_hardly_one_is_claimed():
    def noisy(seed, n=150):
        rng = np.random.default_rng(seed)
        hidden = 1.2 * rng.normal(size=n) + 1
        correct = rng.random(n) < 1 / (1 + np.exp(-hidden))

        def view():
            return 0.5 + 0.5 / (1 + np.exp(-(hidden + rng.normal(size=n))))

        def two():
            p = view()
            return np.stack([p, 1 - p], axis=1)

        return Outputs(two(), 5 * two(), two(), view()), correct

    # Each of four views of the same thing is as good as the others; 5 % may be claimed, and 3 more is chance.
    assert sum(compare(*noisy(seed), seed=seed).best != "msp" for seed in range(80)) <= 8


def test_intervals_of_more_rivals_are_wider():
    out, correct = stated(200, seed=5)
    alone = compare(out, correct, names=["margin"]).rivals["margin"]
    among = compare(out, correct).rivals["margin"]
    assert among.high - among.low > alone.high - alone.low


def test_a_parameter_is_judged_without_the_examples_it_was_chosen_by(monkeypatch):
    from uncertainty import confidence_comparison

    asked = []

    def spied(name, outputs, correct):
        asked.append((name, len(outputs)))
        return fit(name, outputs, correct)

    monkeypatch.setattr(confidence_comparison, "fit", spied)
    out, correct = stated(100, seed=1)
    compare(out, correct, names=["max_logit_pnorm"])
    assert len(asked) == 5 and all(60 <= n <= 90 for _, n in asked)
    assert sum(100 - n for _, n in asked) == 100


def test_a_ranking_that_is_the_same_gains_nothing_and_claims_nothing():
    out, correct = stated(120, C=2)
    rival = compare(out, correct, names=["margin"]).rivals["margin"]
    assert (rival.gain, rival.better) == (pytest.approx(0, abs=1e-12), False)
    ranks = mean_ranks(out.probabilities.max(1))
    assert compare(Outputs(out.probabilities, None, None, ranks / 120), correct).best == "msp"


@pytest.mark.parametrize(("n", "errors"), [(MIN_EXAMPLES - 1, 10), (200, MIN_ERRORS - 1), (60, 60)])
def test_with_too_few_there_is_nothing_to_say(n, errors):
    out, _ = stated(n)
    assert compare(out, np.arange(n) >= errors) is None


def test_the_comparison_is_repeatable():
    assert compare(*stated(80), seed=3) == compare(*stated(80), seed=3)


def test_nonsense_is_refused():
    out, correct = stated(60)
    with pytest.raises(UnknownMethodError):
        compare(out, correct, names=["surely"])
    with pytest.raises(NotFittedError, match="laplace_probit"):
        compare(out, correct, names=["laplace_probit"])
    with pytest.raises(ShapeError):
        compare(out, correct[:-1])
