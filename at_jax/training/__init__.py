"""Training: from a configuration and a work directory to a trained and evaluated model."""
