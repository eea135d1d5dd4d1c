"""One module an experiment of the paper, in the order of the results page."""
