"""The uncertainty of numbers: confidence intervals and paired comparisons, over items and draws.

Two things make a number uncertain: which n questions (or windows) were used, and which D calibration draws.
Each contributes its standard error times Student's t with n - 1 or D - 1 degrees of freedom, and the squares
add up. Nonlinear functions of means are bootstrapped over the items. Nothing here knows records.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import norm, t

RESAMPLES = 4000
CHUNK = 1 << 21  # resampled values in memory at once


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    mean: float  # the estimate
    low: float
    high: float
    n: int  # number of questions or windows
    draws: int = 1  # of the calibration; with one draw the interval is valid for that draw only
    level: float = 0.95  # the confidence level
    from_draws: float = 0.0  # share of the squared half-width that is due to the draws; the rest: the items

    @property
    def sign(self) -> int:
        """1 if the interval is above 0, -1 if below; 0 if it contains 0, so that the sample can't decide."""
        return int(self.low > 0) - int(self.high < 0)

    def map(self, function: Callable[[float], float]) -> "Interval":
        """Return the interval of an increasing function of the number, such as `math.exp`."""
        ends = {name: float(function(getattr(self, name))) for name in ("mean", "low", "high")}
        return replace(self, **ends)

    def exp(self) -> "Interval":
        """Return the interval of the number whose logarithm this is: a perplexity, or a ratio of two."""
        return self.map(lambda end: math.exp(end) if end < 700 else math.inf)

    def show(self, digits: int = 2, scale: float = 1) -> str:
        """Format the number and its interval: "12.34 [11.90, 12.80]"; an infinite one as "[undetermined]"."""
        mean, low, high = (f"{number * scale:,.{digits}f}" for number in (self.mean, self.low, self.high))
        unbounded = math.isinf(self.low) and math.isinf(self.high)
        return f"{mean} [undetermined]" if unbounded else f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        return self.show()


def mean_interval(values: Any, *, level: float = 0.95) -> Interval:
    """Estimate a mean with its interval, mean -+ sqrt(sum over tasks of (T_n s_n)^2 / n + (T_D s_D)^2 / D).

    s_n is the standard deviation of a task's n items, averaged over draws, s_D that of the draws' means, and
    T is Student's t.

    Args:    values: `(items,)`, or `(draws, items)` with the same items in every draw, or a mapping of these
             (task -> values): all tasks have the same weight in the mean.
             level: the confidence level, in (0, 1).
    Returns: the interval; from -inf to inf if a task has only one item, since its spread is unknown.
    Raises:  ValueError: no values, values that are not finite, or a level outside (0, 1).
    """
    interval, strata = _linear(np.ones(1), values, level=level), _strata(values, level=level)
    if math.isinf(interval.low) or any(np.ptp(stratum) for stratum in strata):
        return interval
    if all(stratum.max() > 0 for stratum in strata):  # every answer is right: the mean can't be higher
        return replace(interval, high=interval.mean)
    if all(stratum.max() <= 0 for stratum in strata):  # every answer is wrong: it can't be lower
        return replace(interval, low=interval.mean)
    return interval


def paired_difference(a: Any, b: Any, *, level: float = 0.95) -> Interval:
    """Estimate how much higher a's mean is than b's on the same items, whose difficulty cancels.

    Args:    a, b: values as in `mean_interval`, with the same items in the same order. Draw i of a is
             compared with draw i of b; values without draws (the dense model) with every draw.
    Raises:  ValueError: a and b differ in tasks, items or draws (the message gives both shapes).
    """
    return _linear(np.array([1.0, -1.0]), a, b, level=level)


def paired_ratio(a: Any, b: Any, *, level: float = 0.95) -> Interval:
    """Estimate the ratio mean(a) / mean(b) on the same items, such as the share that a pruned model keeps.

    The interval contains every ratio r that a test does not reject:

    (A - r B)^2 <= V_aa - 2 r V_ab + r^2 V_bb

    with the means A and B, and V their covariance, each part times Student's t squared, see `mean_interval`.
    The inequality is quadratic in r, and solving it needs no division by an uncertain number.

    Args, Raises: as `paired_difference`.
    Returns: the interval; from -inf to inf (undetermined) if B^2 <= V_bb, so that B may be 0, or if a task
             has only one item. The mean is NaN if B is 0.
    Source:  Fieller, Some Problems in Interval Estimation, J. R. Stat. Soc. B 16 (1954).
    """
    (A, B), *parts, n, draws = _means(a, b, level=level)
    V, mean = sum(parts), float(A / B) if B else math.nan
    undetermined = Interval(mean, -math.inf, math.inf, n, draws, level)
    square, middle, rest = B**2 - V[1, 1], A * B - V[0, 1], A**2 - V[0, 0]
    if not square > 0:
        return undetermined
    half = math.sqrt(max(middle**2 - square * rest, 0.0))
    ends = {"low": float((middle - half) / square), "high": float((middle + half) / square)}
    weights = np.array([1.0, -mean])
    return replace(undetermined, **ends, from_draws=_share(weights @ part @ weights for part in parts))


def _linear(weights: np.ndarray, *sides: Any, level: float) -> Interval:
    """Estimate the weighted sum of the means of `(sides,)`, see `mean_interval`."""
    means, *parts, n, draws = _means(*sides, level=level)
    mean, half = float(weights @ means), float(np.sqrt(np.maximum(weights @ sum(parts) @ weights, 0)))
    low, high = (mean - half, mean + half) if math.isfinite(half) else (-math.inf, math.inf)
    return Interval(mean, low, high, n, draws, level, _share(weights @ part @ weights for part in parts))


def _means(*sides: Any, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Compute the means of the sides, and their squared margins that are due to items and to draws.

    Returns: means `(sides,)`, two covariances `(sides, sides)` times Student's t squared (of items: NaN if a
             task has only one; of draws), the number of items, and that of draws.
    """
    strata = _strata(*sides, level=level)
    drawn = np.mean([stratum.mean(axis=2) for stratum in strata], axis=0)  # (sides, draws)
    by_items = sum(_margin(stratum.mean(axis=1), level) for stratum in strata) / len(strata) ** 2
    by_items[0, 0] += sum(_unanimous(stratum, level) for stratum in strata) / len(strata) ** 2
    draws = drawn.shape[1]
    by_draws = _margin(drawn, level) if draws > 1 else np.zeros_like(by_items)
    return drawn.mean(axis=1), by_items, by_draws, sum(stratum.shape[2] for stratum in strata), draws


def _margin(values: np.ndarray, level: float) -> np.ndarray:
    """Compute the covariance of the means of `(sides, n)` values, times Student's t squared."""
    sides, n = values.shape
    if n < 2:
        return np.full((sides, sides), math.nan)
    return t.ppf((1 + level) / 2, n - 1) ** 2 * np.atleast_2d(np.cov(values)) / n


def _unanimous(stratum: np.ndarray, level: float) -> float:
    """Compute the squared margin of outcomes `(sides, draws, items)` that are all alike; otherwise 0.

    z^2 / (n + z^2) is the width of Wilson's interval if all n outcomes of the first side are 0 (or 1), and
    the margin if both sides have the same outcomes. A constant may be subtracted from all outcomes.

    Source:  Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927).
    """
    are_outcomes = np.ptp(stratum % 1) == 0 and np.abs(stratum).max() <= 1
    alike = any(np.ptp(values.mean(axis=0)) == 0 for values in (stratum[0], *np.diff(stratum, axis=0)))
    z = norm.ppf((1 + level) / 2)
    return (z**2 / (stratum.shape[2] + z**2)) ** 2 if are_outcomes and alike else 0.0


def _share(squared: Iterable[float]) -> float:
    """Compute the share of the second part, from draws, in a squared margin; 0 if that is zero or unknown."""
    items, draws = map(float, squared)
    return max(0.0, draws) / (items + draws) if items + draws > 0 else 0.0


def paired_statistic(
    statistic: Callable[[np.ndarray], np.ndarray], *sides: Any, level: float = 0.95, seed: int = 0
) -> Interval:
    """Estimate any function of several means on the same items, such as the share of a loss recovered.

    The items are resampled with replacement; deviations are widened by sqrt(n / (n - 1)) t / z, so that few
    items give the same coverage as many. There are too few draws to resample; Student's t is added instead.

    Args:    statistic: takes `(sides, k)` means and returns `(k,)` numbers.
             sides: values as in `mean_interval`, with the same items in the same order.
    Raises:  as `paired_difference`.
    Source:  Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 12 and 13; the widening:
             Hesterberg, What Teachers Should Know About the Bootstrap (2015), section 3.2.
    """
    strata, generator = _strata(*sides, level=level), np.random.default_rng(seed)
    means = np.mean([stratum.mean(axis=2) for stratum in strata], axis=0)  # (sides, draws)
    middle = means.mean(axis=1, keepdims=True)  # (sides, 1)
    estimate = float(statistic(middle)[0])
    draws, n = means.shape[1], sum(stratum.shape[2] for stratum in strata)
    if min(stratum.shape[2] for stratum in strata) < 2:
        return Interval(estimate, -np.inf, np.inf, n, draws, level)
    moved = np.mean([_deviations(stratum, level, generator) for stratum in strata], axis=0)
    resampled, added = statistic(middle + moved), np.zeros(1)  # (RESAMPLES,)
    if draws > 1:
        error = statistic(means).std(ddof=1) / np.sqrt(draws)
        grid = t.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES, draws - 1)
        added = error * generator.permutation(grid)
    low, high = np.quantile(resampled + added, [(1 - level) / 2, (1 + level) / 2])
    squared = (np.ptp(np.quantile(part, [0.025, 0.975])) ** 2 for part in (resampled, added))
    return Interval(estimate, float(low), float(high), n, draws, level, _share(squared))


def corrected(level: float, comparisons: int) -> float:
    """Return the level of each comparison so that all together hold at `level` (Bonferroni)."""
    return 1 - (1 - level) / max(1, comparisons)


def _strata(*sides: Any, level: float) -> list[np.ndarray]:
    """Convert the sides to one `(sides, draws, items)` array per task."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}, but must be between 0 and 1, such as 0.95")
    named = [side if isinstance(side, Mapping) else {"": side} for side in sides]
    if any(set(side) != set(named[0]) for side in named):
        tasks = " and ".join(", ".join(map(str, side)) for side in named)
        raise ValueError(f"all sides need the same tasks to be compared, but have {tasks}")
    if not named[0]:
        raise ValueError("there are no values: nothing was measured")
    tables = {name: [_table(side[name]) for side in named] for name in named[0]}
    most = max(len(table) for group in tables.values() for table in group)
    strata = []
    for name, group in tables.items():
        shapes = [table.shape for table in group]
        if len({items for _, items in shapes}) > 1 or {draws for draws, _ in shapes} - {1, most}:
            raise ValueError(f"{name or 'the values'}: (draws, items) are {shapes}, which can't be paired")
        strata.append(np.stack([np.broadcast_to(table, (most, table.shape[1])) for table in group]))
    return strata


def _table(values: Any) -> np.ndarray:
    table = np.atleast_2d(np.asarray(values, dtype=float))  # (draws, items)
    if table.ndim > 2 or not table.size:
        raise ValueError(f"values have the shape {table.shape}; give (items,) or (draws, items), not empty")
    if not np.isfinite(table).all():
        raise ValueError(f"{int((~np.isfinite(table)).sum())} of {table.size} values are not finite numbers")
    return table


def _deviations(stratum: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    """Resample the items of `(sides, draws, items)`; return the means' deviations, `(sides, RESAMPLES)`."""
    items = stratum.mean(axis=1)  # (sides, items)
    n, tail = items.shape[1], (1 + level) / 2
    chunk = max(1, min(RESAMPLES, CHUNK // n))
    sizes = [min(chunk, RESAMPLES - start) for start in range(0, RESAMPLES, chunk)]
    parts = [items[:, generator.integers(0, n, (size, n))].mean(axis=2) for size in sizes]
    widen = np.sqrt(n / (n - 1)) * t.ppf(tail, n - 1) / norm.ppf(tail)
    return widen * (np.concatenate(parts, axis=1) - items.mean(axis=1, keepdims=True))
