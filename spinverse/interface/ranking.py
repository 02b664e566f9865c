"""How a score tells true facets from others; no rank sees all scores."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from ..parallel.exchange import reduced


def ranking(score: np.ndarray, truth: np.ndarray, comm: MPI.Comm = MPI.COMM_SELF) -> dict:
    """How a low score tells true facets from others, whatever the threshold. Collective.

    Only the scores of true facets go to all ranks: the first of the cuts with the best F1 is just
    past one, for a cut that moves past a score of others finds more without a further hit.

    Args:
        score: ``(n,)``, low for membrane; of this rank's facets.
        truth: ``(n,)`` bool.
        comm: all their ranks.

    Returns:
        ``auc`` (ties count half), ``best_f1`` and ``best_f1_cut``: the F1 of ``score < cut`` at
        the best cut, half-way (in log where positive) to the next score; ``None`` where
        undefined.
    """
    score, truth = np.asarray(score, float), np.asarray(truth, bool)
    values, hits = np.unique(np.concatenate(comm.allgather(score[truth])), return_counts=True)
    others = np.sort(score[~truth])
    negative = comm.allreduce(len(others))
    if not len(values):
        return {"auc": None, "best_f1": None, "best_f1_cut": None}
    positive = int(hits.sum())
    # of the others, how many lie below each value, and not above it
    local = np.array([np.searchsorted(others, values, side) for side in ("left", "right")])
    below, within = reduced(comm, local)
    auc = float(1 - float(hits @ (below + within)) / 2 / (positive * negative)) if negative \
        else None
    hit = np.cumsum(hits)
    f1 = 2 * hit / (hit + within + positive)
    best = int(np.argmax(f1))
    low = values[best]
    above = score[score > low].min(initial=np.inf)
    high = np.float64(comm.allreduce(float(above), op=MPI.MIN))
    if np.isfinite(high):
        cut = np.sqrt(low * high) if low > 0 else high / 2
    else:
        cut = 2 * low if low > 0 else 1.0
    return {"auc": auc, "best_f1": float(f1[best]),
            "best_f1_cut": float(cut) if np.isfinite(cut) else None}
