"""The application: options, one table of methods, run folders, experiments, reports, the command line."""
