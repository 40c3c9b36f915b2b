"""What weights are quantized against: data, complete feeds, statistics of what flows through the model."""
