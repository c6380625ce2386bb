"""A network for other programs: files and folders, each checked by running what is in it."""
