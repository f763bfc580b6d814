"""The namespace of these tests follows the API server's rules."""

import pytest

from tests.unit.cluster.api_contract import ApiContract
from tests.unit.cluster.namespace import Namespace


class TestNamespace(ApiContract):
    @pytest.fixture
    def cluster(self) -> Namespace:
        return Namespace()
