"""The mathematics of denoising as pure tensor functions; the network is an argument, `reference` is the oracle."""
