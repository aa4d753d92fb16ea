"""Benchmarks: one file per question. Figures are rates, told beside a probe of the same run."""
