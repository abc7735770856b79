"""Training in plain torch, from values and its own section of the configuration."""
