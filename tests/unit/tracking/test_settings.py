import pytest

from csi_job.errors import ConfigurationError
from csi_job.tracking.settings import TrackingSettings, wandb_mode


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ({}, {}, "online"),
        ({}, {"wandb_mode": "offline"}, "offline"),
        ({"WANDB_MODE": "offline"}, {}, "offline"),
        ({"WANDB_MODE": " OFFLINE "}, {"wandb_mode": "offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, {}, "offline"),
        ({"WANDB_MODE": "run"}, {"wandb_mode": "online"}, "online"),
        ({"WANDB_MODE": "disabled"}, {}, "disabled"),
        ({"WANDB_MODE": ""}, {}, "online"),
        ({"WANDB_DISABLED": "true"}, {}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, {}, "disabled"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "offline"}, {}, "offline"),
    ],
)
def test_the_environment_gives_the_mode(environment, given, expected):
    assert wandb_mode(TrackingSettings.model_validate(given), environment) == expected


@pytest.mark.parametrize(
    ("environment", "given", "message"),
    [
        ({"WANDB_MODE": "offline"}, "online", "wandb_mode is online, but the environment says offline (WANDB_MODE)"),
        ({"WANDB_MODE": "online"}, "offline", "wandb_mode is offline, but the environment says online (WANDB_MODE)"),
        ({"WANDB_DISABLED": "yes"}, "offline", "the environment says disabled (WANDB_DISABLED)"),
        (
            {"WANDB_MODE": "of-line"},
            "offline",
            "WANDB_MODE has no valid value, got 'of-line'; allowed: online, offline",
        ),
    ],
)
def test_a_contradiction_and_an_unknown_mode_are_refused(environment, given, message):
    with pytest.raises(ConfigurationError) as refused:
        wandb_mode(TrackingSettings.model_validate({"wandb_mode": given}), environment)
    assert message in str(refused.value)
