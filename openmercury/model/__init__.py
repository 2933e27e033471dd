"""The network and its files: configuration, Transformer, gated adapter, the attention rule, weights in and out."""
