"""Numbers only: what a stored weight means, how it is rounded, packed and measured. No ONNX, no graph.

Functions on floating point arrays are generic over NumPy and torch through ``array_api_compat``.
"""
