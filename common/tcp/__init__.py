"""What both cores know of TCP: who is still there, and what answers a stranger."""
