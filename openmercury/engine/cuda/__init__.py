"""The CUDA form of a decoding step: few Triton kernels that overlap, each with a plain twin in `engine`."""
