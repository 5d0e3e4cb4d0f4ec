"""Files for runtimes: ONNX, OpenVINO, LiteRT, ExecuTorch."""
