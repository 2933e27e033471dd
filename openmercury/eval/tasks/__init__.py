"""Benchmarks: what is asked, and how an answer is turned into a program that says whether it is right."""
