"""Lambdas and batch norms, by the implementation that ``dispatch`` chooses."""

from labn.model.kernels.dispatch import lambdas, norm, product_dtype
from labn.model.kernels.recompute import apply, block, recomputed

__all__ = ["apply", "block", "lambdas", "norm", "product_dtype", "recomputed"]
