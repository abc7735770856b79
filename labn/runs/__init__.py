"""From a configuration to a trained, scored and logged run."""
