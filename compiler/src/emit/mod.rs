//! Emitters: kernel IR printed as machine code (CPU) or CUDA C.
