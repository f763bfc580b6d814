"""Use the installed package as a library: its data files are inside, and an untrained model can be written."""

import json
from importlib import metadata, resources
from pathlib import Path

import torch
from safetensors.torch import save_file

import csi_job
from csi_job.evaluation.model_file import FORMAT
from csi_job.trial.model import build_model

DATA_FILES = (
    "py.typed",
    "html/templates/base.html.j2",
    "html/templates/blocks.html.j2",
    "html/templates/page.css",
    "html/templates/plots.js",
    "report/page/templates/report.html.j2",
    "report/page/templates/plot.html.j2",
    "evaluation/templates/evaluation.html.j2",
    "final_model/templates/card.md.j2",
)

package = Path(csi_job.__file__).parent
assert "site-packages" in package.parts, package
missing = [name for name in DATA_FILES if not resources.files(csi_job).joinpath(name).is_file()]
assert not missing, missing
about = metadata.metadata("csi-job")
assert about["License-Expression"] == "MIT"
assert csi_job.__version__ == about["Version"]
assert any(path.name == "LICENSE" for path in metadata.files("csi-job") or ())

torch.manual_seed(0)
card = {"architecture": "Custom_1", "image_size_px": 32, "normalisation": "medical", "params": {}}
state = build_model("Custom_1").state_dict()
save_file(state, "model.safetensors", {"format": FORMAT, "card": json.dumps(card)})
