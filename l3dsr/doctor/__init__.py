"""`l3dsr doctor`: is this host, and the way to the nodes, as the daemons need it?"""
