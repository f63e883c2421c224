"""Measurements that README reports; each module is a command: ``python -m benchmarks.NAME``."""
