"""Whether posteriors mean what they say: truths from the prior, their posteriors, and counts.

Cook, Gelman and Rubin, J. Comput. Graph. Stat. 15, 675, 2006; Talts, Betancourt, Simpson, Vehtari
and Gelman, arXiv 1804.06788: ranks of truths among samples are uniform, intervals of 90 % hold 90 %
of them, and of the mesh cells with a probability of 0.3 three of ten are inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mpi4py import MPI

from .result import LEVELS, Posterior, by_volume, quantities_of
from .run import Sampling, sample, shared
from .sampler import Arrays, Space, examples

APART = 4000  # moves of the prior between two truths
BINS = 10  # of probabilities, and of ranks
QUANTITIES = ("volume", "surface_to_volume", "permeability")


def pool(space: Space, sampling: Sampling, comm: MPI.Comm) -> Arrays:
    """Hypotheses of the prior with their signals, which all posteriors learn from. Collective."""
    parts = shared(comm, lambda c: examples(
        space, (sampling.seed, c, 10**6), sampling.examples // sampling.chains),
        range(sampling.chains))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def truths(space: Space, number: int, seed: int, comm: MPI.Comm) -> Arrays:
    """Hypotheses of the prior, and magnitudes by the full model with noise. Collective.

    Returns:
        ``labels``, ``theta``, ``predicted`` without noise, ``measured``.
    """
    drawn = space.draws(np.random.default_rng((seed, 10**6 + 1)), number, APART)
    predicted = shared(comm, lambda k: space.exact(*drawn[k]), range(number))
    measured = [space.likelihood.drawn(p, np.random.default_rng((seed, 10**6 + 2, k))).measured
                for k, p in enumerate(predicted)]
    return {"labels": np.array([labels for labels, _ in drawn], np.int8),
            "theta": np.array([theta for _, theta in drawn]),
            "predicted": np.array(predicted), "measured": np.array(measured)}


def judged(space: Space, sampling: Sampling, known: Arrays, labels: np.ndarray,
           theta: np.ndarray, measured: np.ndarray, seed: int) -> dict[str, Any]:
    """The posterior of one truth against it. On this rank alone."""
    here = space.measured(replace(space.likelihood, measured=measured))
    found = sample(here, replace(sampling, seed=seed), MPI.COMM_SELF,
                   np.zeros((len(space.models.whole.facets), 3), np.int64), None, known)
    labels, theta = by_volume(space, labels, theta)
    return against(found, labels, quantities_of(space, labels, theta))


def against(found: Posterior, labels: np.ndarray, true: dict[str, float]) -> dict[str, Any]:
    """Plain arrays and numbers of a posterior and its truth."""
    row: dict[str, Any] = {"probability": found.probability, "inside": labels > 0,
                           "expected_f1": found.expected_f1, "solves": found.solves,
                           "samples": len(found.labels), **found.correction,
                           "r_hat": max(found.r_hat.values()),
                           "effective_samples": min((n for n in found.effective.values() if n == n),
                                                    default=np.nan)}
    for name in QUANTITIES:
        values, x = found.quantities[name], true[name]
        row[f"{name}"], row[f"{name} median"] = x, np.median(values)
        row[f"{name} rank"] = np.mean(values < x) + 0.5 * np.mean(values == x)
        for level in LEVELS:
            low, high = found.interval(name, level)
            row[f"{name} in {100 * level:.0f} %"] = low <= x <= high
    return row


def reliability(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many mesh cells are inside among those of a probability, in bins of 10 %.

    ``error`` is the standard error of the difference, truths being independent and the cells of
    one not.
    """
    table = []
    for k in range(BINS):
        differences, p, number, inside = [], 0.0, 0, 0
        for row in rows:
            chosen = np.minimum((row["probability"] * BINS).astype(int), BINS - 1) == k
            number += int(chosen.sum())
            p += float(row["probability"][chosen].sum())
            inside += int(row["inside"][chosen].sum())
            differences.append(float((row["inside"] - row["probability"])[chosen].sum()))
        table.append({"from": k / BINS, "to": (k + 1) / BINS, "cells": number,
                      "mean probability": p / number if number else np.nan,
                      "inside": inside / number if number else np.nan,
                      "error": float(np.linalg.norm(differences)) / number if number else np.nan})
    return table


def coverage(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Share of the truths in their intervals, with the standard error of as many throws."""
    n = len(rows)
    return [{"quantity": name, "level": level, "truths": n,
             "covered": float(np.mean([row[f"{name} in {100 * level:.0f} %"] for row in rows])),
             "error": float(np.sqrt(level * (1 - level) / n))}
            for name in QUANTITIES for level in LEVELS]


def ranks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many truths have which rank among their samples, in tenths; uniform is right."""
    table = []
    for name in QUANTITIES:
        at = np.array([row[f"{name} rank"] for row in rows])
        counts = np.bincount(np.minimum((at * BINS).astype(int), BINS - 1), minlength=BINS)
        expected = len(rows) / BINS
        table.append({"quantity": name, **{f"{10 * k} to {10 * k + 10} %": int(count)
                                           for k, count in enumerate(counts)},
                      "chi-square of 9": float(np.sum((counts - expected) ** 2) / expected)})
    return table
