"""What the tests of looked-up tasks do with a task and a run."""


def sample(task, count, seed=0):
    """`count` random configurations."""
    task.space.seed(seed)
    # Asked for one, ConfigSpace does not give a list.
    return [dict(config) for config in task.space.sample_configuration(count + 1)[:count]]


def errors(run, epochs):
    """The validation errors of the next epochs."""
    return [run.train_epoch()["validation_error"] for _ in range(epochs)]
