"""The projection by which `faces.tracking.embedding` tells people apart."""

import numpy as np

from latentsync.types import FloatArray

__all__ = ["fit_projection"]


def fit_projection(looks: FloatArray, axes: int, shrinkage: float) -> tuple[FloatArray, FloatArray]:
    """Fit linear discriminant analysis: the mean (d,), and the axes (d, `axes`).

    Looks at one person have a variance of 1 along each axis.

    Args:
        looks: (people, looks, d).
        axes: at most the number of people less 1.
        shrinkage: share of the mean variance within people that is added to each dimension's.
    """
    people, count, size = looks.shape
    centred = looks.astype(np.float64)
    mean = centred.mean(axis=(0, 1))
    centred = centred - mean
    people_means = centred.mean(axis=1)
    off = (centred - people_means[:, None]).reshape(-1, size)
    within = off.T @ off / (people * (count - 1))
    within += shrinkage * np.trace(within) / size * np.eye(size)
    between = people_means.T @ people_means / people
    variance, directions = np.linalg.eigh(within)
    whitened = directions / np.sqrt(variance)
    _, turned = np.linalg.eigh(whitened.T @ between @ whitened)
    best = whitened @ turned[:, ::-1][:, :axes]
    return mean.astype(np.float32), best.astype(np.float32)
