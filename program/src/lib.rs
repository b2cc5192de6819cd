//! Egret's compiled program: plain data between compiler and runtime.

pub mod driver;
