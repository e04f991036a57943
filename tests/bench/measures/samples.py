"""The numbers of a bench: of each row, of each measure, one a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Samples = dict[str, list[float]]
Results = dict[str, Samples]


def add(samples: Samples, measure: str, value: float) -> None:
    """One more run's number."""
    samples.setdefault(measure, []).append(value)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value at `share` of an ascending sequence."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(results: Mapping[str, Mapping[str, Sequence[float]]], row: str, measure: str) -> float | None:
    """Over the runs; None when it was not measured."""
    values = results.get(row, {}).get(measure)
    return statistics.median(values) if values else None


def ratio(results: Mapping[str, Mapping[str, Sequence[float]]], row: str, other: str, measure: str) -> float | None:
    """How many times another row's number: the median of each run's own ratio, as runs differ more than rows do."""
    pairs = zip(results.get(row, {}).get(measure, ()), results.get(other, {}).get(measure, ()), strict=False)
    ratios = [mine / theirs for mine, theirs in pairs if theirs]
    return statistics.median(ratios) if ratios else None
