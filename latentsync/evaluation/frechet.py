"""Frechet distance between two sets of features: what FID and FVD are, whatever net gives them.

Both sets are taken for Gaussians, of which only mean and covariance count; `Moments` gathers those
from a stream. FID: https://arxiv.org/abs/1706.08500; FVD: https://arxiv.org/abs/1812.01717.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentsync.errors import OptionError

__all__ = ["Moments", "frechet_distance"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """How many features of width d there were, their mean and spread; two of them add up.

    Sums of squares would cancel where the mean is large beside the spread; so what is kept is the
    scatter about the mean, merged as by Chan, Golub and LeVeque,
    https://doi.org/10.1080/00031305.1983.10483115. In float64 a width of 2048 takes 32 MB.
    """

    count: int
    mean: Array  # (d,)
    scatter: Array  # (d, d): sum of the outer products of each feature less the mean

    @classmethod
    def none(cls, width: int) -> "Moments":
        """Of no feature yet: where a sum begins."""
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, features: ArrayLike) -> "Moments":
        """Of features (n, d), at least one.

        Raises:
            OptionError: another shape, or a value that is not finite.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
            raise OptionError(
                f"got features of shape {rows.shape}; wanted (1 or more, width) of finite numbers"
            )
        mean = rows.mean(axis=0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean))

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets together. Raises OptionError where their widths differ."""
        _check_widths(self, other)
        count = self.count + other.count
        apart = other.mean - self.mean
        share = other.count / max(1, count)
        between = np.outer(apart, apart) * (self.count * share)
        return Moments(count, self.mean + share * apart, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Array:
        """(d, d), unbiased as `numpy.cov` has it. Raises OptionError of fewer than 2 features."""
        if self.count < 2:
            raise OptionError(f"{self.count} features have no covariance; give 2 or more")
        return np.asarray(self.scatter / (self.count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B the covariances; 0 for equal sets.

    It is biased: few samples give a larger distance than many, even of one and the same set, and n
    features leave a covariance of rank n - 1 at most. It is computed all the same (a root of each
    covariance by its own eigenvectors, no root of their product, which would break there), but
    compare only distances of equally many samples, and publish none of fewer than some thousands:
    https://arxiv.org/abs/1911.07023.

    Raises:
        OptionError: the widths differ, or one set has fewer than 2 features.
    """
    _check_widths(a, b)
    apart = a.mean - b.mean
    spread = np.trace(a.covariance) + np.trace(b.covariance)
    # tr (A B)^(1/2) is the sum of the singular values of R^T S, where A = R R^T and B = S S^T.
    common = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    return max(0.0, float(apart @ apart + spread - 2 * common))


def _root(covariance: Array) -> Array:
    """R (d, rank) with R R^T the covariance; directions that hold rounding only are left out."""
    values, vectors = np.linalg.eigh(covariance)
    real = values > values.max() * len(values) * np.finfo(np.float64).eps
    return np.asarray(vectors[:, real] * np.sqrt(values[real]))


def _check_widths(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise OptionError(
            f"features of widths {len(a.mean)} and {len(b.mean)} can't be compared; both must be "
            "of one net"
        )
