"""Times a model of anomalib on one image. Run by the Python of anomalib's own environment.

    python anomalib_latency.py METHOD WEIGHTS.safetensors --size 256 --warmup 20 --iterations 100 --bank 2048

Prints JSON: ``samples_ms``, from an uint8 image in host memory to the anomaly map, by its own transform and model in
torch. Trained parts are random, which cost the same; PatchCore's bank holds as many vectors as it is told.
"""

import argparse
import json
import time

import numpy as np
import torch
from anomalib_worker import MODELS, build, fit, use_weights

FIT_IMAGES = 8  # for the statistics of PaDiM, whose cost does not depend on them


@torch.no_grad()
def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=MODELS)
    parser.add_argument("weights")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--bank", type=int, required=True)
    given = parser.parse_args()

    use_weights(given.weights)
    torch.manual_seed(0)
    module = build(given.method, (given.size, given.size), 0.1)
    rng = np.random.default_rng(0)
    if given.method == "padim":
        images = torch.rand(FIT_IMAGES, 3, given.size, given.size)
        fit(module, images, 0, FIT_IMAGES, 0)
    elif given.method == "patchcore":
        module.model.memory_bank = torch.rand(given.bank, sum(module.model.feature_extractor.out_dims))
    module.eval()
    image = rng.integers(0, 256, (given.size, given.size, 3), dtype=np.uint8)

    def once() -> np.ndarray:
        floats = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        return module.model(module.pre_processor.transform(floats)).anomaly_map.numpy()

    samples_ms = []
    for index in range(given.warmup + given.iterations):
        start_ns = time.perf_counter_ns()
        once()
        if index >= given.warmup:
            samples_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    print(json.dumps({"samples_ms": samples_ms}))


if __name__ == "__main__":
    main()
