//! Work that streams are given, and doing it.

use egret_sim::{Arg, LaunchOptions, WarpOrder};

use crate::clock;
use crate::driver::{Driver, Function};
use crate::status::*;

/// Host memory that a copy reads.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Pageable: taken when the copy was queued.
    Bytes(Vec<u8>),
    /// Page-locked, or recorded: read when the copy is done.
    Late(usize, usize),
}

/// One thing to do.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Launch { function: Function, grid: [u32; 3], block: [u32; 3], shared: u32, args: Vec<Vec<u8>> },
    Upload { to: u64, from: Source },
    Download { to: usize, from: u64, bytes: usize },
    Copy { to: u64, from: u64, bytes: usize },
    Fill { to: u64, value: u8, bytes: usize },
    Record(u64),
}

impl Driver {
    /// Gives a stream something to do, or to record.
    pub fn submit(&mut self, stream: u64, work: Work) -> Outcome {
        let stream = self.stream(stream)?;
        match &mut stream.capture {
            Some(capture) if !capture.valid => return Err(CAPTURE_INVALIDATED),
            Some(capture) => capture.recorded.push(work),
            None => stream.queue.push(work),
        }
        Ok(())
    }

    /// Does what a stream was given.
    pub fn finish(&mut self, handle: u64) -> Outcome {
        let stream = self.stream(handle)?;
        if let Some(capture) = &mut stream.capture {
            capture.valid = false;
            return Err(CAPTURE_UNSUPPORTED);
        }
        let gpu = stream.gpu;
        for work in std::mem::take(&mut stream.queue) {
            self.perform(gpu, &work)?;
        }
        Ok(())
    }

    /// Does what all streams of a GPU were given.
    pub fn finish_all(&mut self, gpu: usize) -> Outcome {
        let mut streams: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, s)| s.gpu == gpu && s.capture.is_none())
            .map(|(handle, _)| *handle)
            .collect();
        streams.sort_unstable();
        streams.into_iter().try_for_each(|stream| self.finish(stream))
    }

    fn perform(&mut self, gpu: usize, work: &Work) -> Outcome {
        let illegal = |this: &mut Driver, kind: egret_sim::FaultKind| this.lose(gpu, ILLEGAL_ADDRESS, kind.to_string());
        match work {
            Work::Upload { to, from } => {
                let bytes = match from {
                    Source::Bytes(bytes) => bytes.as_slice(),
                    // SAFETY: the caller of the copy keeps the memory until it is done.
                    Source::Late(from, bytes) => unsafe { std::slice::from_raw_parts(*from as *const u8, *bytes) },
                };
                self.gpus[gpu].clock += clock::copy(bytes.len());
                match self.memory.write(*to, bytes.len()) {
                    Ok(place) => place.copy_from_slice(bytes),
                    Err(kind) => return Err(illegal(self, kind)),
                }
            }
            Work::Download { to, from, bytes } => {
                self.gpus[gpu].clock += clock::copy(*bytes);
                match self.memory.read(*from, *bytes) {
                    // SAFETY: the caller of the copy keeps the memory until it is done.
                    Ok(place) => unsafe { std::ptr::copy_nonoverlapping(place.as_ptr(), *to as *mut u8, *bytes) },
                    Err(kind) => return Err(illegal(self, kind)),
                }
            }
            Work::Copy { to, from, bytes } => {
                let copied = self.memory.read(*from, *bytes).map(<[u8]>::to_vec);
                match copied
                    .and_then(|copied| self.memory.write(*to, *bytes).map(|place| place.copy_from_slice(&copied)))
                {
                    Ok(()) => {}
                    Err(kind) => return Err(illegal(self, kind)),
                }
            }
            Work::Fill { to, value, bytes } => match self.memory.write(*to, *bytes) {
                Ok(place) => place.fill(*value),
                Err(kind) => return Err(illegal(self, kind)),
            },
            Work::Record(event) => {
                self.events.insert(*event, Some(self.gpus[gpu].clock));
            }
            Work::Launch { function, grid, block, shared, args } => {
                self.launches += 1;
                // every order finds other faults
                let order = match self.launches % 3 {
                    0 => WarpOrder::Forward,
                    1 => WarpOrder::Reverse,
                    _ => WarpOrder::Seeded(self.launches),
                };
                let options =
                    LaunchOptions { warp_order: order, dynamic_shared: *shared as usize, ..Default::default() };
                let args: Vec<Arg> = args.iter().map(|bytes| Arg::Bytes(bytes.clone())).collect();
                let Some((_, module)) = self.modules.get(&function.module) else { return Err(INVALID_HANDLE) };
                let ran = module.launch(&function.name, *grid, *block, &args, &mut self.memory, &options);
                let report = match ran {
                    Ok(report) => report,
                    Err(fault) => {
                        let fault = format!("kernel {}: {fault}", function.name);
                        return Err(self.lose(gpu, LAUNCH_FAILED, fault));
                    }
                };
                let blocks = grid.iter().map(|&n| u64::from(n)).product();
                let gpu = &mut self.gpus[gpu];
                gpu.clock += clock::kernel(&report, blocks, gpu.cores.unsigned_abs().into());
            }
        }
        Ok(())
    }
}
