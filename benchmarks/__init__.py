"""Timings and tables, each made by one command."""
