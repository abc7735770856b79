"""The forms that compute lambdas and batch norms, chosen by device, type and shape."""
