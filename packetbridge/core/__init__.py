"""The node's decisions about handed-over connections: packets and `now` in, packets and questions out."""
