"""Devices, processes, signals, memory, versions: where and how the program runs."""
