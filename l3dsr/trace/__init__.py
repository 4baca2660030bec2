"""`l3dsr trace`: packets of this service as they pass on this host."""
