"""Where a federation runs: in this process, in Flower's simulation, or deployed with TLS."""
