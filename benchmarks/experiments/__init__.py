"""The experiments of benchmarks.objectives: what is trained, how it is measured, and the page of results."""
