"""Hostile tries: bad inputs, kills, damaged states, processes that disagree.  Start it with ``make hostile``.

Every try ends in one of ``trial.VERDICTS``; all but ``fine`` are failures.  Not a part of the tests: it takes long.
"""
