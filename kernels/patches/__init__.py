"""Images cut into patches."""
