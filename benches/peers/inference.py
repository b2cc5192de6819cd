"""Runs a model in another engine, as often as it is told to.

    python inference.py onnxruntime|openvino|tract MODEL INPUTS OUTPUTS THREADS

INPUTS is a folder with `input_0.pb`, … in the model's order; results go to OUTPUTS as `output_0.npy`, …. Prints `ready`, then for each line `SECONDS` of the standard input one line: the median of the runs in that time, in ms. Everything is
f32: OpenVINO would take bf16 by itself where the processor has it.
"""
import os
import pathlib
import statistics
import sys
import time

import numpy as np
import onnx

# element types as tract spells them
SHORT = {"float32": "f32", "float64": "f64", "float16": "f16", "int64": "i64", "int32": "i32", "int8": "i8", "uint8": "u8",
         "bool": "bool"}


def onnxruntime(model, inputs, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if threads > 1:
        # its threads are pinned, so that two are never left on one core
        affinities = ";".join(str(i + 1) for i in range(1, threads))
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    given = {port.name: value for port, value in zip(session.get_inputs(), inputs)}
    return lambda: session.run(None, given)


def openvino(model, inputs, threads):
    import openvino as ov

    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": True,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = ov.Core().compile_model(ov.Core().read_model(str(model)), "CPU", hints)
    request = compiled.create_infer_request()
    for at, value in enumerate(inputs):
        request.set_input_tensor(at, ov.Tensor(np.ascontiguousarray(value)))

    def run():
        request.infer()
        return [request.get_output_tensor(at).data for at in range(len(compiled.outputs))]

    return run


def tract(model, inputs, threads):
    import tract as engine

    if threads > 1:
        sys.exit("tract runs on one thread")
    loaded = engine.onnx().load(str(model))
    for at, value in enumerate(inputs):
        loaded.set_input_fact(at, ",".join([*map(str, value.shape), SHORT[value.dtype.name]]))
    runnable = loaded.into_model().into_runnable()
    return lambda: [out.to_numpy() for out in runnable.run(inputs)]


def main():
    engine, model, given, results, threads = sys.argv[1:]
    threads = int(threads)
    cores = sorted(os.sched_getaffinity(0))
    # the caller computes too: onnxruntime's is pinned, the others place their own threads
    pinned = cores[:1] if threads == 1 or engine == "onnxruntime" else cores[:threads]
    files = sorted(pathlib.Path(given).glob("input_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    inputs = [onnx.numpy_helper.to_array(onnx.load_tensor(path)) for path in files]
    os.sched_setaffinity(0, pinned)
    run = {"onnxruntime": onnxruntime, "openvino": openvino, "tract": tract}[engine](pathlib.Path(model), inputs, threads)
    for at, value in enumerate(run()):
        np.save(pathlib.Path(results) / f"output_{at}.npy", value)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(2):
            run()
        end, times = time.perf_counter() + float(line), []
        while len(times) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        print(statistics.median(times), flush=True)


if __name__ == "__main__":
    main()
