"""Networks of other libraries, out of sight of the tests of other files."""

import pytest
from foreign import foreign


@pytest.fixture(scope="module")
def vision():
    """Both libraries of the extra ``vision``."""
    with foreign():
        yield
