"""The paper's experiments, one a module, at three scales; `python -m simulations NAME` runs them."""
