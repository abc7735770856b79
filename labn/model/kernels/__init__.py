"""Lambdas and batch norms, computed by the form that ``dispatch`` chooses."""

from labn.model.kernels.dispatch import lambdas, norm
from labn.model.kernels.recompute import apply, recomputed

__all__ = ["apply", "lambdas", "norm", "recomputed"]
