//! Egret.
