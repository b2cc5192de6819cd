//! Layers, losses, optimisers and data sets for Egret.
