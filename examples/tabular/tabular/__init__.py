"""Hospitals with tables, aligned and averaged."""
