"""What an installation and its machine have, what is missing, and what to do about it."""
