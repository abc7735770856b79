"""Images: readers of each layout, the cache, the subsets, the batches, the audit."""
