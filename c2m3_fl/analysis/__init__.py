"""Analysis of merged networks: barriers, cycle errors, similarities."""
