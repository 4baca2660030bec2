"""Linux as the raw data plane needs it: taps, TUN, rules and routes; nothing of TCP."""
