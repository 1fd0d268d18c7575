import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread, as a trial runs; as many as before afterwards."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
