"""The process and what it runs on: hardware, memory, threads, signals, other processes."""
