"""The store on Redis: one server, servers behind Sentinel, or a Cluster."""
