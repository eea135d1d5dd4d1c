"""What a server can make of a few inputs of its own: repairs, and rivals that use the same inputs."""
