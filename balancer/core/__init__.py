"""The balancer's decisions: packets and `now` in, packets out; no clock, socket, log or randomness."""
