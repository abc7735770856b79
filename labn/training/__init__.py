"""Training: plain torch, handed values and its own section of the configuration."""
