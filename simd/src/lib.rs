//! CPU micro-kernels, packing and vector mathematics of Egret.
