"""Where training runs are done: in processes of this machine, or on a cluster through Ray."""
