"""Models for tests, demos and benchmarks: one file, one model, run as ``python -m models.NAME``.

Not installed with the package. Each model file fetches or trains its weights, exports them to ONNX into the
user's cache folder, and gives the model's calibration data, evaluation data and metric.
"""
