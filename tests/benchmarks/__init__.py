"""Speed and memory, as ratios inside one run: `python -m tests.benchmarks`."""
