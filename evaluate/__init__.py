"""Benchmarks that measure a frozen backbone, the cells they run in, and suites of cells."""
