"""Lambdas and batch norms, by the implementation that ``dispatch`` chooses."""

from labn.model.kernels.dispatch import lambdas, norm
from labn.model.kernels.recompute import apply, recomputed

__all__ = ["apply", "lambdas", "norm", "recomputed"]
