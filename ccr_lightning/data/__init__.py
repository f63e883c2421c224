"""From caption files and pictures to batches."""
