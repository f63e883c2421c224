"""The command ``ccr``."""
