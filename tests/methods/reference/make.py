"""Run the public implementations on the weights and inputs of `reference_inputs`, and store some of what they make.

    python tests/methods/reference/make.py efficient_ad|ast|cfa CLONE

CLONE is a clone of the repository named below. Of its code nothing is kept here but numbers. Packages it imports and
does not need for a forward pass are replaced by nothing; CFA's needs einops.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from reference_inputs import features, fill, pictures, sample  # noqa: E402

UNUSED = (
    *("torchvision", "torchvision.datasets", "torchvision.transforms"),
    *("tifffile", "efficientnet_pytorch", "scipy.ndimage.morphology", "skimage", "skimage.measure"),
)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet


def efficient_ad() -> dict[str, Any]:
    """https://github.com/nelson1425/EfficientAD: ``common.py`` and the map of ``efficientad.py``."""
    common, code = importlib.import_module("common"), importlib.import_module("efficientad")
    code.on_gpu, code.out_channels = False, 384
    code.tqdm = lambda iterable, **_: iterable

    def images(count: int, side: int) -> list[tuple[Tensor, None]]:
        scaled = (pictures(count, side, side).float() / 255 - MEAN) / STD
        return [(image[None], None) for image in scaled.permute(0, 3, 1, 2)]

    networks = {
        "pdn_small": common.get_pdn_small(384),
        "pdn_medium": common.get_pdn_medium(384),
        "student": common.get_pdn_small(768),
        "autoencoder": common.get_autoencoder(384),
    }
    for network in networks.values():
        fill(network.eval().state_dict())
    teacher, student, autoencoder = networks["pdn_small"], networks["student"], networks["autoencoder"]
    mean, std = code.teacher_normalization(teacher, images(2, 64))
    ((image, _),) = images(1, 256)
    quantiles = code.map_normalization([(image, None)], teacher, student, autoencoder, mean, std)
    combined, of_teacher, of_autoencoder = code.predict(image, teacher, student, autoencoder, mean, std, *quantiles)
    return {
        "pdn_small": sample(teacher(images(1, 64)[0][0])),
        "pdn_medium": sample(networks["pdn_medium"](images(1, 64)[0][0])),
        "autoencoder": sample(autoencoder(image)),
        "teacher_mean": sample(mean),
        "teacher_std": sample(std),
        "quantiles": [float(value) for value in quantiles],
        "map_student": sample(of_teacher),
        "map_autoencoder": sample(of_autoencoder),
        "map": sample(combined),
    }


def ast() -> dict[str, Any]:
    """https://github.com/marco-rudolph/AST: the flow of ``model.py``, its student, the losses of ``utils.py``.

    Its configuration as it is but for sizes: 20 features, 8 and 16 channels inside, 6 x 6 positions, images alone.
    """
    config = importlib.import_module("config")
    config.device, config.mode, config.n_feat, config.map_len = "cpu", "RGB", 20, 6
    config.use_3D_dataset = config.training_mask = False
    config.channels_hidden_teacher, config.channels_hidden_student = 8, 16
    code, utils = importlib.import_module("model"), importlib.import_module("utils")
    flow, student = code.get_nf(), code.Student()
    fill(flow.state_dict())
    fill(student.eval().state_dict())
    values = features(2, 20, 6, 6)
    encoding = code.positionalencoding2d(32, 6, 6)
    conditions = encoding.tile(2, 1, 1, 1)
    z, jacobian = flow([conditions, values]), flow.jacobian(run_forward=False)[0]
    imitated = student([conditions, values])
    return {
        "clamp": config.clamp,
        "orders": [node.perm.tolist() for node in flow.module_list if hasattr(node, "perm")],
        "parameters": {"flow": list(flow.state_dict()), "student": list(student.state_dict())},
        "encoding": sample(encoding),
        "z": sample(z),
        "log_determinant": sample(jacobian),
        "loss_teacher": float(utils.get_nf_loss(z, jacobian, torch.ones(2, 1, 6, 6))),
        "student": sample(imitated),
        "map": sample(utils.get_st_loss(z, imitated, torch.ones(2, 1, 6, 6), per_pixel=True)),
        "loss_student": float(utils.get_st_loss(z, imitated, torch.ones(2, 1, 6, 6))),
    }


def cfa() -> dict[str, Any]:
    """https://github.com/sungwool/CFA_for_anomaly_localization: ``utils/cfa.py``, the map as in ``trainer_cfa.py``.

    Its features for a ResNet18, 448 channels, 8 of the descriptor (gamma_d 56), tiles of 32 pixels.
    """
    torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign,assignment] # what it calls without one as well
    code, metric = importlib.import_module("utils.cfa"), importlib.import_module("utils.metric")
    convolution = code.CoordConv2d

    def filled(*arguments: Any) -> nn.Module:
        module: nn.Module = convolution(*arguments)
        fill(module.conv.state_dict())
        return module

    code.CoordConv2d = filled

    def extract(numbers: Tensor) -> list[Tensor]:
        """Maps by the number of the batch."""
        return [features(2, 64 * 2**k, 8 >> k, 8 >> k, int(numbers[0]) + k) for k in range(3)]

    batches = [(torch.tensor([number]), None, None) for number in (10, 20)]
    model = code.DSVDD(extract, batches, "res18", 1, 56, "cpu")
    model.r.data.fill_(0.9)
    maps = extract(torch.tensor([30]))
    loss, _ = model.train()(maps)
    _, score = model.eval()(maps)
    heatmap = metric.gaussian_smooth(metric.upsample(score.detach().mean(1), size=32, mode="bilinear"), sigma=4)
    return {
        "centres": sample(model.C.T),
        "score": sample(score),
        "loss": float(loss),
        "map": sample(torch.from_numpy(heatmap)),
    }


def by_line(record: dict[str, Any], opened: str) -> str:
    """JSON with a key a line, those of ``record[opened]`` too."""
    texts = {key: by_line(value, "") if key == opened else json.dumps(value) for key, value in record.items()}
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {text}" for key, text in texts.items()) + "\n}"


def main(method: str, clone: str) -> None:
    """Write METHOD.json beside this file."""
    commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    sys.path.insert(0, clone)
    make = {"efficient_ad": efficient_ad, "ast": ast, "cfa": cfa}[method]
    stored = {
        "repository": str(make.__doc__).split(": ")[0],
        "commit": commit.stdout.strip(),
        "made_by": f"tests/methods/reference/make.py {method} CLONE",
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    sys.modules |= {name: MagicMock() for name in UNUSED}
    with torch.no_grad():
        stored["values"] = make()
    (HERE / f"{method}.json").write_text(by_line(stored, "values") + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
