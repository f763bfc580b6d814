"""The real API server keeps the rules that the unit tests' namespace follows."""

import pytest

from csi_job.cluster.api import Cluster
from tests.e2e.release import Release
from tests.unit.cluster.api_contract import ApiContract


class TestApiServer(ApiContract):
    @pytest.fixture
    def cluster(self, release: Release, monkeypatch: pytest.MonkeyPatch) -> Cluster:
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(release.user))
        return Cluster(release.namespace)
