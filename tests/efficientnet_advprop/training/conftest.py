import pytest

from tests.efficientnet_advprop.training import tiny_run


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tiny_run.write_data(tmp_path_factory.mktemp("tiny") / "data")
