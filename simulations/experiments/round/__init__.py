"""What a round costs the server."""
