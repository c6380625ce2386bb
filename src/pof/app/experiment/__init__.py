"""Experiments: recipes, seeds, equal compute, paired statistics; what ``pof experiment`` runs."""
