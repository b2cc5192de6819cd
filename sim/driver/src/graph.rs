//! Functions of recorded work: `cuStreamBeginCapture`, `cuGraph…`.

use std::ffi::{c_int, c_ulonglong};

use crate::api::run;
use crate::driver::{Capture, driver};
use crate::status::*;

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: u64, mode: c_int) -> Status {
    run(|| {
        let mut driver = driver();
        let stream = driver.stream(stream)?;
        if stream.capture.is_some() {
            return Err(CAPTURE_UNMATCHED);
        }
        stream.capture = Some(Capture::new(mode));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(stream: u64, graph: *mut u64) -> Status {
    run(|| {
        let mut driver = driver();
        let Capture { recorded, valid, .. } = driver.stream(stream)?.capture.take().ok_or(CAPTURE_UNMATCHED)?;
        let handle = driver.handle();
        if valid {
            driver.graphs.insert(handle, recorded);
        }
        // SAFETY: the caller's: room for a handle.
        unsafe { *graph = if valid { handle } else { 0 } };
        if valid { Ok(()) } else { Err(CAPTURE_INVALIDATED) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(exec: *mut u64, graph: u64, _flags: c_ulonglong) -> Status {
    run(|| {
        let mut driver = driver();
        let recorded = driver.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
        let handle = driver.handle();
        driver.graphs.insert(handle, recorded);
        // SAFETY: the caller's: room for a handle.
        unsafe { *exec = handle };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(exec: u64, stream: u64) -> Status {
    run(|| {
        let mut driver = driver();
        let recorded = driver.graphs.get(&exec).ok_or(INVALID_HANDLE)?.clone();
        recorded.into_iter().try_for_each(|work| driver.submit(stream, work))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: u64) -> Status {
    run(|| driver().graphs.remove(&graph).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(exec: u64) -> Status {
    cuGraphDestroy(exec)
}
