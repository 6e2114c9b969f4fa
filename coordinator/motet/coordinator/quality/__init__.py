"""Stages of `motet bench quality` that a coordinator's code does: merging experts, assembling and scoring systems.

Rooms: `material` reads what earlier stages left, `merge` and `score` are the stages, `networks`, `composites` and
`ensembles` the systems that are scored, `choosing` is how validation documents choose a setting.
"""
