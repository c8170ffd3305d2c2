"""Formats that nothing in the package imports, found by entry points: torchvision and ONNX."""
