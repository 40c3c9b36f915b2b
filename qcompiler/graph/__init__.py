"""Models as graphs, over onnx_ir: loading, saving, editing, and weights that live in files."""
