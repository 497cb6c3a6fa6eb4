"""Run the public implementations on the weights and inputs of `reference_inputs`, and store some of what they make.

    python tests/methods/reference/make.py efficient_ad|ast|cfa|spade CLONE

CLONE is a clone of the repository named below. Of its code nothing is kept here but numbers. Packages it imports and
does not need for a forward pass are replaced by nothing; CFA's needs einops, SPADE's scikit-learn and matplotlib.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from reference_inputs import features, fill, pictures, sample, tiles_of_layers  # noqa: E402

UNUSED = (
    *("torchvision", "torchvision.datasets", "torchvision.models", "torchvision.transforms"),
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


def spade() -> dict[str, Any]:
    """https://github.com/byungjae89/SPADE-pytorch: all of ``src/main.py`` but its network, data, curves and figures.

    Images are their numbers, and the network looks their features up. K is 5 and maps are 224 x 224, as theirs. The
    gallery is compared in hundreds of vectors, and what is left over is not compared at all; here nothing is left over.
    """
    sys.path.insert(0, f"{sys.path[0]}/src")
    code = importlib.import_module("main")
    train, test = tiles_of_layers()

    class Network(nn.Module):
        """The hooks of the script are on what it is made of."""

        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer2, self.layer3 = (nn.Sequential(nn.Identity()) for _ in range(3))
            self.avgpool = nn.AdaptiveAvgPool2d(1)

        def forward(self, numbers: Tensor) -> None:
            """Numbers of test tiles come after those of training tiles."""
            for layer, *values in zip(self.children(), train, test, strict=True):
                layer(torch.cat(values)[numbers])

    def tiles(class_name: str, is_train: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Batches of three."""
        first, count = (0, len(train[0])) if is_train else (len(train[0]), len(test[0]))
        numbers = torch.arange(first, first + count)
        return [(part, torch.zeros(len(part)), torch.zeros(len(part), 1, 224, 224)) for part in numbers.split(3)]

    def distance_of_channels(one: Tensor, other: Tensor) -> Tensor:
        """`torch.pairwise_distance` along axis 1, as it was in 2020; now it is along the last, of a map its columns."""
        return torch.pairwise_distance(one.movedim(1, -1), other.movedim(1, -1))

    def topk(*arguments: Any, **options: Any) -> Any:
        retrieved.append(torch.topk(*arguments, **options))
        return retrieved[-1]

    retrieved: list[Any] = []
    code.torch = MagicMock(wraps=torch, topk=topk, pairwise_distance=distance_of_channels)
    code.F = MagicMock(wraps=F)
    code.wide_resnet50_2 = lambda **_: Network()
    code.mvtec = Namespace(CLASS_NAMES=["tiles"], MVTecDataset=tiles)
    code.DataLoader = lambda batches, **_: batches
    code.tqdm = lambda iterable, *_: iterable
    code.roc_curve = MagicMock(return_value=(0, 0, 0))
    code.roc_auc_score = MagicMock(return_value=0.0)
    code.precision_recall_curve = MagicMock(return_value=np.zeros((3, 1)))
    code.plt, code.visualize_loc_result = MagicMock(), MagicMock()
    code.plt.subplots.return_value = (MagicMock(), MagicMock())
    with tempfile.TemporaryDirectory() as folder:
        code.parse_args = lambda: Namespace(top_k=5, save_path=folder)
        code.main()
    ((distances, nearest),) = retrieved
    before_upsampling = [call.args[0] for call in code.F.interpolate.call_args_list]  # three layers of a tile in turn
    return {
        "nearest": nearest.tolist(),
        "distances": sample(distances),
        "scores": sample(torch.from_numpy(code.roc_curve.call_args_list[0].args[1])),
        **{f"layer{k + 1}": sample(torch.cat(before_upsampling[k::3])) for k in range(3)},
        "map": sample(torch.from_numpy(np.stack(code.visualize_loc_result.call_args.args[2]))),
    }


def by_line(record: dict[str, Any], opened: str) -> str:
    """JSON with a key a line, those of ``record[opened]`` too."""
    texts = {key: by_line(value, "") if key == opened else json.dumps(value) for key, value in record.items()}
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {text}" for key, text in texts.items()) + "\n}"


def main(method: str, clone: str) -> None:
    """Write METHOD.json beside this file."""
    commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    sys.path.insert(0, clone)
    make = {"efficient_ad": efficient_ad, "ast": ast, "cfa": cfa, "spade": spade}[method]
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
