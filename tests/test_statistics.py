"""The report's tests against published numbers, and against what they promise."""

import warnings

import numpy as np
import pytest
from scipy import stats

from cellbench.metrics.tests import (
    corrected_t,
    holm_factors,
    mcnemar,
    paired_interval,
    resampled,
    unvaried,
)
from tests.benchmarks import verdicts


def test_the_correlated_t_test_agrees_with_its_authors_own():
    # baycomp 1.0.3, two_on_single(x, y, rope=.01), of Corani, Benavoli and Demsar
    first = np.array([0.74, 0.81, 0.79, 0.76, 0.83])
    second = np.array([0.78, 0.82, 0.80, 0.81, 0.84])
    found = corrected_t(second - first, 1 / 4, 0.01)
    assert (found.worse, found.same, found.better) == pytest.approx(
        (0.03002264460779636, 0.1423008995109215, 0.8276764558812821)
    )
    assert found.mean == pytest.approx(0.024)
    assert found.n == 5


def test_the_correction_is_nadeaus_and_bengios():
    differences, ratio = np.array([0.02, 0.05, -0.01, 0.04, 0.03, 0.0]), 0.25
    found = corrected_t(differences, ratio, 0.01)
    t = differences.mean() / np.sqrt((1 / 6 + ratio) * differences.var(ddof=1))
    assert found.p == pytest.approx(2 * stats.t.sf(t, 5))
    assert corrected_t(differences, 0.0, 0.01).p == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue
    )


def test_what_does_not_vary_is_not_judged():
    for value in (0.0, -0.2):
        found = corrected_t([value] * 3, 0.25, 0.01)
        assert found.mean == pytest.approx(value)
        assert (found.low, found.high, found.p, found.same) == (None, None, None, None)
    assert resampled(0.1, np.full(100, 0.1), 20).p is None
    assert resampled(0.1, np.full(100, 0.1), 1, [(0.01, 2)]).p is None
    assert resampled(0.1, np.linspace(0, 1, 100), 1).low is None


def test_mcnemar_agrees_with_the_published_example():
    # Fagerland, Lydersen and Laake, BMC Med Res Methodol 13:91 (2013): 1 and 7 of 21, exact p .070
    found = mcnemar(1, 7, 21)
    assert found.p == pytest.approx(0.0703125)
    assert found.mean == pytest.approx(6 / 21)
    # Tango's interval of the same table, Fagerland, Lydersen and Laake (Stat Med 33, 2014).
    assert paired_interval(1, 7, 21) == pytest.approx((0.026, 0.517), abs=5e-4)
    assert found.low == 0 < found.high  # as p is above 5 %


@pytest.mark.parametrize("level", [0.95, 0.99])
@pytest.mark.parametrize(
    ("first", "second"),
    [(0, 0), (0, 5), (0, 6), (3, 12), (4, 12), (20, 35), (1, 40), (0, 200), (3, 3)],
)
def test_mcnemars_interval_agrees_with_its_p(first, second, level):
    found = mcnemar(first, second, 200, level)
    discordant = max(first + second, 1)
    assert found.p == pytest.approx(stats.binomtest(max(first, second, 1), discordant).pvalue)
    assert (found.p < 1 - level) == (found.low > 0 or found.high < 0)
    assert found.low <= found.mean <= found.high
    other = mcnemar(second, first, 200, level)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(("n", "first", "second"), [(60, 0, 0.02), (300, 0, 0.02), (300, 0.01, 0)])
def test_mcnemars_interval_covers_by_exact_enumeration(n, first, second):
    assert verdicts.coverage(verdicts.ours, n, first, second, tail=1e-4) > 0.93


def test_one_discordant_sample_of_60_says_less_than_none():
    none, one = mcnemar(0, 0, 60), mcnemar(0, 1, 60)
    assert one.high - one.low > none.high - none.low
    assert none.high == pytest.approx(-none.low) == pytest.approx(0.0602, abs=1e-4)


def test_mcnemar_agrees_with_statsmodels():
    other = pytest.importorskip("statsmodels.stats.contingency_tables").mcnemar
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for first, second in ((0, 3), (2, 9), (7, 4)):
            theirs = other([[50, first], [second, 20]], exact=True).pvalue
            assert mcnemar(first, second, 100).p == pytest.approx(theirs)


def test_holm_steps_down():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert p * holm_factors(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_factors([0.6, 0.7]) == pytest.approx([2, 2 * 0.6 / 0.7])
    assert holm_factors([0.0, 0.03]) == [2, 1]


def test_an_interval_at_holms_level_agrees_with_his_p():
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = [(rng.normal(0, 0.04, 5) + 0.05, 0.25, 0.01) for _ in range(4)]
        p = [corrected_t(*own).p for own in found]
        for own, factor in zip(found, holm_factors(p), strict=True):
            one = corrected_t(*own, level=1 - 0.05 / factor)
            assert (factor * one.p < 0.05) == (one.low > 0 or one.high < 0)
            assert 1 <= factor <= 4


def test_pooled_folds_count_by_their_size():
    differences, shares = [0.1, 0.0, 0.05], [0.5, 0.3, 0.2]
    found = corrected_t(differences, 0.5, 0.01, mean=0.06, shares=shares)
    scale = np.sqrt((0.25 + 0.09 + 0.04 + 0.5) * np.var(differences, ddof=1))
    assert found.high == pytest.approx(0.06 + stats.t.ppf(0.975, 2) * scale)


def test_equal_folds_are_judged_by_how_sure_each_is():
    found = corrected_t([-0.2] * 5, 0.25, 0.01, within=0.01)
    assert found.p == pytest.approx(2 * stats.t.sf(0.2 / np.sqrt(0.45 * 0.01), 4))
    assert found.high < 0


def test_groups_that_agree_count_as_single_samples():
    assert unvaried(0.0, 60) == mcnemar(0, 0, 60)
    assert unvaried(1.0, 6) == mcnemar(0, 6, 6)
    assert unvaried(0.1, 60) == mcnemar(0, 6, 60)
    assert unvaried(0.1, 1).p is None


def test_the_variance_between_runs_is_added_with_satterthwaites_freedom():
    replicates = np.random.default_rng(0).normal(0, 0.01, 2000)
    found = resampled(0.02, replicates, 40, [(2e-4, 2), (1e-4, 2)])
    parts = np.array([replicates.var() * 40 / 39, 2e-4, 1e-4])
    freedom = parts.sum() ** 2 / (parts**2 / [39, 2, 2]).sum()
    assert found.p == pytest.approx(2 * stats.t.sf(0.02 / np.sqrt(parts.sum()), freedom))


@pytest.mark.parametrize(("n", "size", "seeds"), [(300, 1, 3), (300, 10, 2)])
def test_two_sets_of_runs_of_one_condition_are_seldom_called_different(n, size, seeds):
    judged, of_groups_alone = verdicts.on_one_test_set(400, n, size, seeds, 0.93)

    def called(found):
        return np.mean([one.p is not None and one.p < 0.05 for one in found])

    assert called(judged) < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 400)
    assert called(of_groups_alone) > 0.12


def test_a_true_difference_between_conditions_is_found():
    judged, _ = verdicts.on_one_test_set(100, 300, 1, 3, 0.85, run_sd=0.01, better=0.1)
    assert np.mean([one.p < 0.05 and one.mean > 0 for one in judged]) > 0.8


def nearest_mean(rng, n, folds, repeats, farther):
    """Differences of two classifiers in repeated cross-validation, fold by fold.

    Both take a sample for the class whose mean is nearer, each in three features of its own; the
    classes are as far apart in both, but for `farther`.
    """
    labels = np.arange(n) % 2
    apart = np.array([0.4, 0.4 + farther])[:, None, None]
    features = rng.normal(size=(2, n, 3)) + (2 * labels - 1)[None, :, None] * apart
    differences = []
    for _ in range(repeats):
        order = rng.permutation(n)
        for fold in range(folds):
            test = np.zeros(n, bool)
            test[order[fold::folds]] = True
            means = [features[:, ~test & (labels == k)].mean(axis=1) for k in (0, 1)]
            distances = [((features[:, test] - m[:, None]) ** 2).sum(axis=2) for m in means]
            right = (distances[0] > distances[1]) == (labels[test] == 1)
            differences.append(right[1].mean() - right[0].mean())
    return np.array(differences)


def rejected(farther, trials=300):
    """How often the corrected and the naive test reject at 5 %."""
    rng, counts = np.random.default_rng(0), np.zeros(2)
    for _ in range(trials):
        differences = nearest_mean(rng, 100, 5, 3, farther)
        p = corrected_t(differences, 1 / 4, 0.01).p
        counts += [p is not None and p < 0.05, stats.ttest_1samp(differences, 0).pvalue < 0.05]
    return counts / trials


def test_the_corrected_test_keeps_its_size_where_the_naive_one_does_not():
    corrected, naive = rejected(0.0)
    assert corrected <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)
    assert naive > 0.2
    power, _ = rejected(0.25)
    assert power > 0.3


def test_the_corrected_test_is_exact_for_the_correlation_that_it_assumes():
    rng, n, ratio = np.random.default_rng(0), 15, 1 / 4
    rho = ratio / (1 + ratio)
    trials = 4000
    draws = np.sqrt(rho) * rng.normal(size=(trials, 1)) + np.sqrt(1 - rho) * rng.normal(
        size=(trials, n)
    )
    share = np.mean([corrected_t(own, ratio, 0.01).p < 0.05 for own in draws])
    assert abs(share - 0.05) < 2.6 * np.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("groups", [3, 8, 60])
def test_a_test_sets_groups_are_resampled_with_the_right_size(groups):
    rng, trials, rejected = np.random.default_rng(groups), 400, 0
    for _ in range(trials):
        effect = rng.normal(0, 0.1, groups)  # each group's own, of a mean of 0
        own = np.array([rng.binomial(25, 0.5 + e / 2) / 25 - 0.5 for e in effect])
        draws = rng.multinomial(groups, np.full(groups, 1 / groups), 1000) @ own / groups
        found = resampled(own.mean(), draws, groups)
        rejected += found.p is not None and found.p < 0.05
        assert found.p is None or (found.p < 0.05) == (found.low > 0 or found.high < 0)
    assert rejected / trials < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / trials)
    assert rejected / trials > 0.02
