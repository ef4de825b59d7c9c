"""Save, find, verify and load what a run has learnt."""
