"""The head-to-head: tasks × methods × seeds under equal budgets, recorded and reported.

`study` reads what is compared, `methods` says how each method is built, `runner` runs the
cells in worker processes, `records` keeps what they leave, and `stats`, `plots` and
`report` tell what the records say. Only `worker` and `tune_parts`, which run inside the
worker processes, import Ray.
"""
