"""The eBPF data plane with very many flows, and under a flood: what does not compare with `direct`.

population   flows by the million, written into the daemons' maps
cost         how long the programs take for a packet, by the number of flows they know, and for a sweep
memory       what the maps of running daemons take, full of flows
flood        who is still served while SYNs of spoofed addresses come in
"""
