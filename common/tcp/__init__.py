"""What both cores know of TCP: who is still there, how two legs are spliced, what answers look like."""
