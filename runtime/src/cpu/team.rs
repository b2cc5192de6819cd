//! A small team of threads for fork-join work of microseconds.
//!
//! The caller computes too. The others spin while a run lasts and a little longer, then sleep. Work is divided into chunks.
//! Each thread begins with a stretch of them that is its own, the same part of every job, so that it finds in its cache what
//! it wrote in the job before; whoever is done takes from the end of another's stretch, so that a core that is busy with
//! something else stalls nobody: the caller waits only for chunks that were begun.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker looks for work after a run before it sleeps: about what a wake costs many times over.
const LINGER: Duration = Duration::from_micros(500);
/// How long anyone spins before letting others have the core.
const PATIENCE: Duration = Duration::from_micros(50);
/// Polls between two looks at the clock.
const POLLS: usize = 256;
/// Bits of a count of jobs.
const JOBS: u32 = (1 << (64 - 2 * Stretch::BITS)) - 1;

/// On a cache line pair of its own, so that spinning on one does not slow writes to another.
#[repr(align(128))]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*const (), usize, usize),
    data: *const (),
    chunks: usize,
    /// Chunks that are taken at once.
    several: usize,
}

struct Worker {
    parked: AtomicBool,
    thread_id: AtomicI32,
}

/// Chunks of a job that nobody has taken of one thread's stretch, in one word, so that a successful exchange that takes one
/// proves that the job is still the one counted, and `job` may be read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stretch {
    /// A count of jobs, that wraps.
    job: u32,
    begin: u32,
    end: u32,
}

impl Stretch {
    /// Bits of each end; the count has the rest.
    const BITS: u32 = 21;
    /// The most chunks of a job.
    const MOST: usize = (1 << Stretch::BITS) - 1;

    fn word(self) -> u64 {
        (u64::from(self.job) << (2 * Stretch::BITS)) | (u64::from(self.begin) << Stretch::BITS) | u64::from(self.end)
    }

    fn of(word: u64) -> Stretch {
        let end = |word: u64| (word & Stretch::MOST as u64) as u32;
        Stretch { job: (word >> (2 * Stretch::BITS)) as u32, begin: end(word >> Stretch::BITS), end: end(word) }
    }
}

/// What a thread begins with, and others take from, on one line: whoever takes a chunk has the job with it.
struct Share {
    /// A [`Stretch`].
    stretch: AtomicU64,
    /// Written only while all chunks of the stretch are complete, read only by holders of one.
    job: UnsafeCell<Job>,
}

struct Shared {
    /// By thread.
    shares: Vec<Line<Share>>,
    /// Chunks that others than the caller completed since the team was made; wraps.
    completed: Line<AtomicUsize>,
    awake: Line<AtomicUsize>,
    workers: Vec<Line<Worker>>,
    panic: UnsafeCell<Option<Box<dyn Any + Send>>>,
    panicked: AtomicBool,
    started: AtomicUsize,
    stop: AtomicBool,
}

// SAFETY: jobs are read only by holders of a chunk, and written while there is none; `panic` is written by whoever turns
// `panicked` on, and read after all chunks are complete.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// A team. One thread at a time may use it (it is `Send`, not `Sync`).
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    jobs: Cell<u32>,
    caller_cpu: Cell<i32>,
    cpus: Vec<usize>,
    not_sync: PhantomData<Cell<()>>,
}

/// Keeps the workers of a [`Team`] spinning while it lives.
pub struct Awake<'a> {
    team: &'a Team,
}

impl Team {
    /// A team of `n` threads, the caller being one of them (0 counts as 1). Fewer if the system refuses to make threads.
    pub fn new(n: usize) -> Team {
        let n = n.max(1);
        let worker = || Worker { parked: AtomicBool::new(false), thread_id: AtomicI32::new(0) };
        unsafe fn nothing(_: *const (), _: usize, _: usize) {}
        let job = Job { call: nothing, data: std::ptr::null(), chunks: 0, several: 1 };
        let share = || Share { stretch: AtomicU64::new(0), job: UnsafeCell::new(job) };
        let shared = Arc::new(Shared {
            shares: (0..n).map(|_| Line(share())).collect(),
            completed: Line(AtomicUsize::new(0)),
            awake: Line(AtomicUsize::new(0)),
            workers: (1..n).map(|_| Line(worker())).collect(),
            panic: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            started: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        for index in 1..n {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name(format!("egret-{index}"));
            match builder.spawn(move || work(&shared, index)) {
                Ok(thread) => threads.push(thread),
                Err(_) => break,
            }
        }
        // A new thread begins on our core: let it start and go to sleep before anyone spins here.
        while shared.started.load(Acquire) < threads.len() {
            std::thread::sleep(Duration::from_micros(50));
        }
        Team {
            shared,
            threads,
            jobs: Cell::new(0),
            caller_cpu: Cell::new(-1),
            cpus: affinity::allowed(),
            not_sync: PhantomData,
        }
    }

    /// Threads, the caller included; worker numbers are below it.
    pub fn size(&self) -> usize {
        self.threads.len() + 1
    }

    /// Wakes the workers and keeps them spinning until the guard is dropped. Take one at the start of a run.
    pub fn awake(&self) -> Awake<'_> {
        if !self.threads.is_empty() {
            self.place();
            self.shared.awake.0.fetch_add(1, SeqCst);
            for (worker, thread) in self.shared.workers.iter().zip(&self.threads) {
                if worker.0.parked.load(SeqCst) {
                    thread.thread().unpark();
                }
            }
        }
        Awake { team: self }
    }

    /// Pins the workers to cores other than the caller's, if the caller has moved. The caller's own mask is left alone.
    fn place(&self) {
        let cpu = affinity::current();
        if cpu < 0 || cpu == self.caller_cpu.get() || self.cpus.len() < 2 {
            return;
        }
        self.caller_cpu.set(cpu);
        let others = self.cpus.iter().copied().filter(|&c| c as i32 != cpu);
        for (worker, cpu) in self.shared.workers.iter().zip(others) {
            affinity::pin(worker.0.thread_id.load(Acquire), cpu);
        }
    }

    /// Calls `f(chunk, worker)` for each `chunk < chunks`, on all threads; returns when all are done. No two calls at the
    /// same time have the same `worker`. Allocates nothing.
    ///
    /// # Panics
    /// With the payload of a chunk that panicked, after all others are done.
    pub fn parallel<F: Fn(usize, usize) + Sync>(&self, chunks: usize, f: &F) {
        if self.threads.is_empty() || chunks <= 1 {
            for chunk in 0..chunks {
                f(chunk, 0);
            }
            return;
        }
        let _awake = (self.shared.awake.0.load(Relaxed) == 0).then(|| self.awake());
        unsafe fn call<F: Fn(usize, usize)>(data: *const (), chunk: usize, worker: usize) {
            // SAFETY: `data` is the `&F` of the caller that waits below.
            unsafe { (*data.cast::<F>())(chunk, worker) }
        }
        let shared = &*self.shared;
        // more chunks than a stretch can tell are taken several at a time
        let several = chunks.div_ceil(Stretch::MOST);
        let job = Job { call: call::<F>, data: (f as *const F).cast(), chunks, several };
        let taken = chunks.div_ceil(several);
        let before = shared.completed.0.load(Relaxed);
        self.jobs.set(self.jobs.get().wrapping_add(1));
        let end = |thread: usize| (taken * thread / self.size()) as u32;
        // the caller's own comes last: the others begin meanwhile
        for thread in (0..self.size()).rev() {
            let (begin, end) = (end(thread), end(thread + 1));
            let stretch = Stretch { job: self.jobs.get() & JOBS, begin, end };
            let share = &shared.shares[thread].0;
            // SAFETY: all chunks of the last job are complete, and of the new one none of this stretch is published.
            unsafe { *share.job.get() = job };
            share.stretch.store(stretch.word(), Release);
        }

        let is_complete = |own: usize| own + shared.completed.0.load(Acquire).wrapping_sub(before) >= taken;
        let mut own = 0;
        for thread in 0..self.size() {
            own += compute(shared, thread, 0);
            if is_complete(own) {
                break;
            }
        }
        let mut patience = Patience::new();
        while !is_complete(own) {
            patience.wait();
        }
        if shared.panicked.load(Acquire) {
            shared.panicked.store(false, Relaxed);
            // SAFETY: no chunk is running.
            if let Some(payload) = unsafe { (*shared.panic.get()).take() } {
                resume_unwind(payload);
            }
        }
    }
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        if !self.team.threads.is_empty() {
            self.team.shared.awake.0.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for thread in &self.threads {
            thread.thread().unpark();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Spins, then yields.
pub(crate) struct Patience {
    since: Option<Instant>,
    polls: usize,
    out: bool,
}

impl Patience {
    pub(crate) fn new() -> Patience {
        Patience { since: None, polls: 0, out: false }
    }

    pub(crate) fn wait(&mut self) {
        std::hint::spin_loop();
        self.polls += 1;
        if self.polls.is_multiple_of(POLLS) {
            let since = *self.since.get_or_insert_with(Instant::now);
            self.out = self.out || since.elapsed() > PATIENCE;
            if self.out {
                std::thread::yield_now();
            }
        }
    }
}

/// Runs chunks of a thread's stretch, until none is left: `worker`'s own from the beginning, another's from the end. Returns
/// how many.
fn compute(shared: &Shared, thread: usize, worker: usize) -> usize {
    let mut done = 0;
    while let Some((job, first)) = take(&shared.shares[thread].0, thread == worker) {
        let chunks = first * job.several..job.chunks.min((first + 1) * job.several);
        // SAFETY: `data` outlives the job.
        let run = AssertUnwindSafe(|| unsafe { chunks.for_each(|chunk| (job.call)(job.data, chunk, worker)) });
        if let Err(payload) = catch_unwind(run)
            && !shared.panicked.swap(true, SeqCst)
        {
            // SAFETY: only the first to panic writes, and is read after `completed` says so.
            unsafe { *shared.panic.get() = Some(payload) };
        }
        done += 1;
    }
    done
}

/// Takes the first chunk of a stretch, or the last.
fn take(share: &Share, first: bool) -> Option<(Job, usize)> {
    let mut seen = share.stretch.load(Acquire);
    loop {
        let left = Stretch::of(seen);
        if left.begin >= left.end {
            return None;
        }
        let (chunk, rest) = match first {
            true => (left.begin, Stretch { begin: left.begin + 1, ..left }),
            false => (left.end - 1, Stretch { end: left.end - 1, ..left }),
        };
        match share.stretch.compare_exchange_weak(seen, rest.word(), Acquire, Acquire) {
            // SAFETY: we hold a chunk, so the job is not replaced until we complete it.
            Ok(_) => return Some((unsafe { *share.job.get() }, chunk as usize)),
            Err(now) => seen = now,
        }
    }
}

/// The life of a worker.
fn work(shared: &Shared, index: usize) {
    let me = &shared.workers[index - 1].0;
    me.thread_id.store(affinity::thread_id(), Release);
    shared.started.fetch_add(1, Release);
    let threads = shared.shares.len();
    let job = || Stretch::of(shared.shares[index].0.stretch.load(Acquire)).job;
    let mut last = 0;
    loop {
        let mut patience = Patience::new();
        let mut idle_since: Option<Instant> = None;
        loop {
            if shared.stop.load(Acquire) {
                return;
            }
            let now = job();
            if now != last {
                last = now;
                for other in 0..threads {
                    // what is done is told before others' lines are looked at: the caller may wait for it
                    let done = compute(shared, (index + other) % threads, index);
                    if done > 0 {
                        shared.completed.0.fetch_add(done, Release);
                    }
                }
                patience = Patience::new();
                idle_since = None;
                continue;
            }
            patience.wait();
            if !patience.polls.is_multiple_of(POLLS) {
                continue;
            }
            if shared.awake.0.load(Acquire) > 0 {
                idle_since = None;
            } else if idle_since.get_or_insert_with(Instant::now).elapsed() > LINGER {
                break;
            }
        }
        // The flag goes up before the last look: whoever wakes us either sees the flag or is seen.
        me.parked.store(true, SeqCst);
        while shared.awake.0.load(SeqCst) == 0 && !shared.stop.load(SeqCst) {
            std::thread::park();
        }
        me.parked.store(false, SeqCst);
    }
}

#[cfg(target_os = "linux")]
mod affinity {
    use std::mem::{size_of, zeroed};

    /// The cores of the calling thread's mask.
    pub(super) fn allowed() -> Vec<usize> {
        // SAFETY: the set is plain data of the size given.
        unsafe {
            let mut set: libc::cpu_set_t = zeroed();
            if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
                return Vec::new();
            }
            (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
        }
    }

    pub(super) fn current() -> i32 {
        // SAFETY: no arguments.
        unsafe { libc::sched_getcpu() }
    }

    pub(super) fn thread_id() -> i32 {
        // SAFETY: no arguments.
        unsafe { libc::syscall(libc::SYS_gettid) as i32 }
    }

    /// Best effort: a team on the wrong core is slow, not wrong.
    pub(super) fn pin(thread_id: i32, cpu: usize) {
        // SAFETY: the set is plain data of the size given.
        unsafe {
            let mut set: libc::cpu_set_t = zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(thread_id, size_of::<libc::cpu_set_t>(), &set);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod affinity {
    pub(super) fn allowed() -> Vec<usize> {
        Vec::new()
    }

    pub(super) fn current() -> i32 {
        -1
    }

    pub(super) fn thread_id() -> i32 {
        0
    }

    pub(super) fn pin(_: i32, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_once() {
        for n in [1, 2, 3, 5] {
            let team = Team::new(n);
            let _awake = team.awake();
            for (chunks, times) in [(0, 200), (1, 200), (2, 200), (7, 200), (100, 200), (Stretch::MOST + 2, 1)] {
                for _ in 0..times {
                    let hits: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                    team.parallel(chunks, &|chunk, worker| {
                        assert!(worker < n);
                        hits[chunk].fetch_add(1, SeqCst);
                    });
                    assert!(hits.iter().all(|h| h.load(SeqCst) == 1));
                }
            }
        }
    }

    #[test]
    fn works_from_sleep() {
        let team = Team::new(2);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(3));
            let sum = AtomicUsize::new(0);
            team.parallel(50, &|chunk, _| {
                sum.fetch_add(chunk, SeqCst);
            });
            assert_eq!(sum.load(SeqCst), 1225);
        }
    }

    #[test]
    fn a_panic_is_passed_on_and_the_team_survives() {
        let team = Team::new(3);
        for bad in 0..6 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.parallel(6, &|chunk, _| assert!(chunk != bad, "chunk {chunk}"));
            }));
            assert!(result.is_err());
        }
        let count = AtomicUsize::new(0);
        team.parallel(10, &|_, _| {
            count.fetch_add(1, SeqCst);
        });
        assert_eq!(count.load(SeqCst), 10);
    }

    #[test]
    fn the_callers_mask_is_left_alone() {
        let before = affinity::allowed();
        let team = Team::new(2);
        team.parallel(4, &|_, _| {});
        assert_eq!(affinity::allowed(), before);
    }
}
