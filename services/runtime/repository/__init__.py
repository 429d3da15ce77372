"""Which versions of which models are served: found in folders, loaded, retired, unloaded."""
