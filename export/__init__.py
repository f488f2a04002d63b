"""Make a bundle: a PyTorch Transformer to a portable fused ONNX graph, with proof."""
