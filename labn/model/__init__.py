"""The network: lambda layers, backbones, the attention branch, released checkpoints."""
