//! A PTX interpreter with checks: runs CUDA kernels where there is no GPU.
