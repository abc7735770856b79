"""Training on several workers, and the clusters that they run on."""
