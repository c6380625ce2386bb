"""Experiments: recipes, seeds, paired statistics; what ``pof experiment`` runs."""

from pof.app.experiment.estimate import Forecast, forecast, total_seconds
from pof.app.experiment.executor import Ended, execute
from pof.app.experiment.pages import cells, header, write_pages
from pof.app.experiment.plan import Cell, Plan, Stage, make_plan, shard
from pof.app.experiment.recipe import Recipe, RecipeError, importable, parse_recipe, read_recipe
from pof.app.experiment.summary import Measure, Summary, check_measure, summarise
from pof.app.experiment.table import Row, planned, rows_of, write_csv

__all__ = [
    "Cell",
    "Ended",
    "Forecast",
    "Measure",
    "Plan",
    "Recipe",
    "RecipeError",
    "Row",
    "Stage",
    "Summary",
    "cells",
    "check_measure",
    "execute",
    "forecast",
    "header",
    "importable",
    "make_plan",
    "parse_recipe",
    "planned",
    "read_recipe",
    "rows_of",
    "shard",
    "summarise",
    "total_seconds",
    "write_csv",
    "write_pages",
]
