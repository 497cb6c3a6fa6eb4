"""Trains a model of anomalib and scores images with it. Run by the Python of anomalib's own environment.

    python anomalib_worker.py METHOD WEIGHTS.safetensors IN.npz OUT.npz --steps 200 --batch-size 32 --seed 0

IN.npz holds ``train`` and ``test``, uint8 (N, h, w, 3) RGB, and for PaDiM the ``channels`` that ours drew. OUT.npz gets
raw ``scores`` (N,), raw ``maps`` (N, h, w) and ``training_s``. Models, losses and optimisers are anomalib's; loading
images, which would resize them its own way, is not, so that both sides see the same pixels. Nothing of edge-ad is
imported here.
"""

import argparse
import time

import numpy as np
import torch
from safetensors.torch import load_file

BATCH = 8  # images scored at once, and shown at once to methods without gradients
MODELS = {
    "padim": ("Padim", {"backbone": "resnet18"}),
    "patchcore": ("Patchcore", {"backbone": "resnet18"}),
    "stfpm": ("Stfpm", {"backbone": "resnet18"}),
    "fastflow": ("Fastflow", {"backbone": "resnet18"}),
    "reverse_distillation": ("ReverseDistillation", {"backbone": "resnet18"}),
}


def use_weights(path: str) -> None:
    """Have timm fill every network that asks for pretrained weights from a file instead of its hub."""
    import timm  # not before: where torchvision has no CPU build, only this script's environment can

    tensors, create = load_file(path), timm.create_model

    def create_model(name, pretrained=False, **kwargs):
        net = create(name, pretrained=False, **kwargs)
        if pretrained:
            missing = [
                key
                for key in net.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False).missing_keys
                if not key.endswith("num_batches_tracked")
            ]
            assert not missing, f"{path} lacks {missing}"
        return net

    timm.create_model = create_model


def build(method: str, size: tuple[int, int], coreset_ratio: float):
    """Its Lightning module, untrained, for images of ``size``."""
    from anomalib import models

    name, arguments = MODELS[method]
    if method == "patchcore":
        arguments = arguments | {"coreset_sampling_ratio": coreset_ratio}
    kind = getattr(models, name)
    return kind(
        **arguments,
        pre_processor=kind.configure_pre_processor(size),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )


def fit(module, images, steps: int, batch_size: int, seed: int) -> None:
    """What its Lightning module does, without Lightning."""
    module.train()
    optimiser = module.configure_optimizers()
    if optimiser is None:  # PaDiM, PatchCore: one pass, then statistics
        with torch.no_grad():
            for start in range(0, len(images), BATCH):
                module.model(images[start : start + BATCH])
        module.fit()
        return
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        order = torch.randperm(len(images), generator=generator)
        for batch in order.split(batch_size):
            if len(batch) < batch_size or done == steps:
                break
            loss = module.loss(*module.model(images[batch]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            done += 1


@torch.no_grad()
def score(module, images):
    """Raw scores (N,) and maps (N, h, w) as its inferencers get them, before they are normalised."""
    module.eval()
    parts = [module.model(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    scores = torch.cat([part.pred_score.reshape(-1) for part in parts])
    maps = torch.cat([part.anomaly_map.reshape(len(part.pred_score), *images.shape[2:]) for part in parts])
    return scores.numpy(), maps.numpy()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=MODELS)
    parser.add_argument("weights")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coreset-ratio", type=float, default=0.1)
    given = parser.parse_args()

    use_weights(given.weights)
    torch.manual_seed(given.seed)
    pixels = np.load(given.source)
    module = build(given.method, pixels["train"].shape[1:3], given.coreset_ratio)
    if "channels" in pixels:  # the random choice is no part of the comparison
        module.model.idx = torch.from_numpy(pixels["channels"])

    def prepared(images):
        as_floats = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
        return torch.cat([module.pre_processor.transform(part) for part in as_floats.split(BATCH)])

    start = time.perf_counter()
    fit(module, prepared(pixels["train"]), given.steps, given.batch_size, given.seed)
    training_s = time.perf_counter() - start
    scores, maps = score(module, prepared(pixels["test"]))
    np.savez(given.target, scores=scores, maps=maps, training_s=training_s)


if __name__ == "__main__":
    main()
