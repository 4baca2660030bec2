"""What the balancer costs: `python -m bench` measures it beside other ways to the same three NGINX.

In every round, and for every workload, the contestants come in turn: first `direct` (the client asks one
NGINX), then the others (no balancer but a routing table, layer-3 direct server return without a look at the
URL, proxies, this project with each of its data planes), and `direct again`. Client, router, balancer, nodes
and load share one machine's cores, so absolute figures say little and their ratio to `direct` of the same
round says most; `direct again` shows how much of it is noise.

    contestants/   who is measured               programs/        what runs on the client
    workloads      what they are asked to do     rounds, run      blocks of turns, and the labs around them
    readings       values and ratios             thresholds       what is wanted
    scale/         very many flows, and floods
    report, figures, output, publish             what becomes of it
"""
