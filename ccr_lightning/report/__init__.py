"""One page of what a test found: numbers, figures, and the images on which the languages disagree most."""
