"""Where pictures and captions come from: one small file per format."""
