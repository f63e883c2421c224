"""The paper's equations: tensors in, tensors out, without state or process groups."""
