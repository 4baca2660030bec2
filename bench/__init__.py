"""What the balancer costs: `python -m bench` measures it against direct connections, side by side.

In every round, and for every workload, the contestants come in turn: `direct` (the client asks one
NGINX), `l3dsr-raw` (the same NGINX through balancer and packetbridge), then `direct` once more. Client,
router, balancer, nodes and load share one machine's cores, so absolute figures say little and
their ratio to `direct` of the same round says most; the second `direct` shows how much of it is noise.
Nothing here is a test: a slow machine makes slow figures, not failures.
"""
