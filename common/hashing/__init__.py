"""From a request to a node: request key, normalisation, XXH64, Maglev lookup table.

Nothing here knows of packets, sockets or time. Whatever runs on the request path is laid down exactly
enough that a C program can compute the same node from the same bytes.
"""
