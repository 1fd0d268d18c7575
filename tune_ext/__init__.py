"""tune_ext: search algorithms and schedulers for Ray Tune."""
