"""Fits against laws that are known because the numbers were made from them."""

import numpy as np
import pytest

from nanochat_lit.evaluation.statistics import fit_parabola, fit_power_law, fit_saturating_power_law


def test_a_parabola_is_found_exactly():
    sizes = [1e7, 3e7, 4e7, 2e8]
    found = fit_parabola(sizes, [0.8 + 0.05 * (np.log10(size) - 7.6) ** 2 for size in sizes])
    assert found.best == pytest.approx(10**7.6, rel=1e-9)
    assert (found.lowest, found.curvature) == pytest.approx((0.8, 0.05), rel=1e-9)
    assert found.is_inside
    assert found(1e7) == pytest.approx(0.8 + 0.05 * 0.36, rel=1e-9)
    assert found.error == pytest.approx(0.0, abs=1e-9)


def test_the_error_is_what_the_curve_misses():
    places, noise = [1.0, 10.0, 100.0, 1000.0], np.array([0.1, -0.3, 0.3, -0.1])  # what no parabola can follow
    values = [(np.log10(place) - 1.5) ** 2 for place in places] + noise
    assert fit_parabola(places, values).error == pytest.approx(np.sqrt((noise**2).mean()), rel=1e-9)


def test_what_has_no_lowest_point_is_no_optimum():
    assert fit_parabola([1.0, 10.0, 100.0], [1.0, 2.0, 1.0]) is None
    assert fit_parabola([1.0, 10.0, 10.0], [1.0, 2.0, 1.0]) is None
    outside = fit_parabola([1.0, 10.0, 100.0], [5.0, 2.0, 0.5])
    assert not outside.is_inside
    assert outside.best > 100


def test_a_power_law_is_found_exactly():
    xs = [1e18, 3e18, 1e19, 1e20]
    law = fit_power_law(xs, [0.07 * x**0.46 for x in xs])
    assert (law.exponent, law.factor) == pytest.approx((0.46, 0.07), rel=1e-9)
    assert law.exponent_error == pytest.approx(0.0, abs=1e-9)
    assert fit_power_law([1e18], [1.0]) is None
    assert fit_power_law(xs[:2], [1.0, 2.0]).exponent_error is None


def test_its_error_is_that_of_repetition():
    """Exponents of 400 noisy data sets scatter as the reported standard error says (within a fifth)."""
    rng, xs = np.random.default_rng(0), np.geomspace(1e18, 1e20, 8)
    laws = [fit_power_law(xs, xs**0.5 * np.exp(0.05 * rng.standard_normal(8))) for _ in range(400)]
    scatter = np.std([law.exponent for law in laws])
    assert np.sqrt(np.mean([law.exponent_error**2 for law in laws])) == pytest.approx(scatter, rel=0.2)
    assert np.mean([law.exponent for law in laws]) == pytest.approx(0.5, abs=0.005)


def test_an_offset_is_found():
    xs = np.geomspace(1e17, 1e20, 7)
    law = fit_saturating_power_law(xs, 0.55 + 3e3 * xs**-0.22)
    assert law.offset == pytest.approx(0.55, abs=0.002)
    assert law.exponent == pytest.approx(-0.22, abs=0.005)
    assert fit_saturating_power_law(xs[:3], [3.0, 2.0, 1.0]) is None


@pytest.mark.parametrize(("alpha", "beta"), [(0.34, 0.28), (0.3, 0.3), (0.25, 0.4)])
def test_isoflop_profiles_recover_the_exponents(alpha, beta):
    """L = E + A / N^alpha + B / D^beta with C = 6 N D has its best N at C^(beta / (alpha + beta)) (Hoffmann et al. 2022)."""
    budgets, best = [1e18, 3e18, 1e19, 3e19], []
    for budget in budgets:
        center = (budget / 6) ** (beta / (alpha + beta)) * (alpha * 400 / (beta * 410)) ** (1 / (alpha + beta))
        sizes = center * np.geomspace(0.4, 2.5, 7)
        tokens = budget / 6 / sizes
        losses = 1.7 + 400 / sizes**alpha + 410 / tokens**beta
        best.append((fit_parabola(sizes, losses).best, fit_parabola(tokens, losses).best))
    assert fit_power_law(budgets, [size for size, _ in best]).exponent == pytest.approx(
        beta / (alpha + beta), abs=0.005
    )
    assert fit_power_law(budgets, [count for _, count in best]).exponent == pytest.approx(
        alpha / (alpha + beta), abs=0.005
    )
