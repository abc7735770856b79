"""Images: readers of each layout, the cache, the parts, the batches, the audit."""
