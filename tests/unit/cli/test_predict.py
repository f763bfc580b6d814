import stat

import pytest

from csi_job.cli.predict import _open


def test_predictions_get_their_name_only_when_they_are_complete(tmp_path):
    output = tmp_path / "scores.csv"

    def stop(stream):
        stream.write("half of them")
        raise KeyboardInterrupt

    for old in (None, "old"):
        with pytest.raises(KeyboardInterrupt), _open(output) as stream:
            stop(stream)
        assert [path.read_text() for path in tmp_path.iterdir()] == ([] if old is None else ["old"])
        with _open(output) as stream:
            stream.write("old" if old is None else "new")
        if old is None:
            assert stat.S_IMODE(output.stat().st_mode) == 0o600
            output.chmod(0o640)
    assert output.read_text() == "new"
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
