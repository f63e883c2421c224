"""Pictures embedded once, and found in any language."""
