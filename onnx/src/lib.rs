//! ONNX models and tensors for Egret.
