"""From a run folder to a bundle: ONNX, OpenVINO IR, quantisation, parity."""
