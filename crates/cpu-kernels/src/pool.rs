//! A pool of threads for many very short parallel loops.
//!
//! A decode step of a small model is about 200 loops of 20-100 microseconds each, one after the other. Threads here
//! spin between loops instead of sleeping, and a thread that the system has taken away is never waited for unless
//! it holds a task. There is no nesting and no return value; everything else in the project uses rayon.
//!
//! Beside other programs a thread is sometimes taken away while it holds a task, and all wait for it, some milliseconds each
//! time. So threads offer their processor to others between two tasks, before it is taken, and whoever waits spins for a
//! bounded time and then sleeps: that frees a processor, and keeps its share of time for later.
#![expect(unsafe_code, reason = "a borrowed closure is handed to threads that outlive the borrow")]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle thread spins before it sleeps: longer than the serial gaps within a step, shorter than the
/// work between steps that other threads should have the processor for.
const SPIN: Duration = Duration::from_micros(200);

/// How long the caller spins for tasks that other threads still have: longer than the difference between two tasks, so
/// that it sleeps only when one of them was taken away.
const SPIN_AT_END: Duration = Duration::from_micros(100);

/// How long a thread works before it lets others have its processor: less than what systems give a thread at once. Where
/// nobody waits for the processor it costs nothing.
const TURN: Duration = Duration::from_millis(1);

type Task<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// Generation of the current loop in the upper bits, [`OPEN`] and the number of threads inside below.
    state: AtomicU64,
    task: Mutex<Option<&'static Task<'static>>>,
    num_tasks: AtomicUsize,
    next_task: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    num_asleep: AtomicUsize,
    /// The caller, while it sleeps until nobody is inside.
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
}

const OPEN: u64 = 1 << 16;
const GENERATION: u64 = 1 << 17;
const INSIDE_MASK: u64 = OPEN - 1;

/// Threads that run loops of independent tasks together with the calling thread.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pool").field("num_threads", &self.num_threads()).finish()
    }
}

impl Pool {
    /// A pool of `num_threads` threads, the caller's included.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub(crate) fn new(num_threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            task: Mutex::new(None),
            num_tasks: AtomicUsize::new(0),
            next_task: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            num_asleep: AtomicUsize::new(0),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
        });
        let mut workers = Vec::new();
        for worker_idx in 1..num_threads.max(1) {
            let shared = Arc::clone(&shared);
            let handle = std::thread::Builder::new()
                .name(format!("kernel-{worker_idx}"))
                .spawn(move || work(&shared))?;
            workers.push((handle.thread().clone(), Some(handle)));
        }
        Ok(Self { shared, workers })
    }

    /// Threads that take part in a loop.
    pub(crate) fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for each `i` below `num_tasks`, on all threads, and returns when all calls have.
    /// `&mut self`: one loop at a time.
    pub(crate) fn run(&mut self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if num_tasks <= 1 || self.workers.is_empty() {
            (0..num_tasks).for_each(task);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. A worker calls the task only while it counts itself inside an open
        // generation, and this function returns only after it has closed the generation and seen nobody inside.
        let task_static = unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        *shared.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task_static);
        shared.num_tasks.store(num_tasks, Ordering::Relaxed);
        shared.next_task.store(0, Ordering::Relaxed);
        let closed = shared.state.load(Ordering::Relaxed);
        shared.state.store((closed & !(OPEN | INSIDE_MASK)) + GENERATION + OPEN, Ordering::SeqCst);
        if shared.num_asleep.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|(thread, _)| thread.unpark());
        }
        let closing = CloseOnDrop { shared };
        take_tasks(shared, task, || true);
        drop(closing);
        assert!(!shared.panicked.load(Ordering::Relaxed), "a kernel task panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker catches the panics of its tasks, so it always ends by itself.
                let _ = handle.join();
            }
        }
    }
}

/// Ends a generation even when the caller's own task panics, so that no worker keeps the borrowed closure.
struct CloseOnDrop<'a> {
    shared: &'a Shared,
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.shared.next_task.store(usize::MAX / 2, Ordering::Relaxed);
        self.shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        wait_for_others(self.shared);
        *self.shared.task.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Until nobody is inside. The flag is raised before the last look at the state, and a thread that leaves looks at the flag
/// after it has left, so no wake-up is lost.
fn wait_for_others(shared: &Shared) {
    let is_done = || shared.state.load(Ordering::SeqCst) & INSIDE_MASK == 0;
    let mut since = None;
    while !is_done() {
        if since.get_or_insert_with(Instant::now).elapsed() < SPIN_AT_END {
            (0..16).for_each(|_| std::hint::spin_loop());
            continue;
        }
        *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        shared.caller_sleeps.store(true, Ordering::SeqCst);
        while !is_done() {
            std::thread::park();
        }
        shared.caller_sleeps.store(false, Ordering::SeqCst);
    }
}

/// Runs tasks until all are taken, or the thread `may_go_on` no longer; returns whether all are taken.
fn take_tasks(shared: &Shared, task: &Task<'_>, may_go_on: impl Fn() -> bool) -> bool {
    let num_tasks = shared.num_tasks.load(Ordering::Relaxed);
    while may_go_on() {
        let task_idx = shared.next_task.fetch_add(1, Ordering::Relaxed);
        if task_idx >= num_tasks {
            return true;
        }
        task(task_idx);
    }
    false
}

fn work(shared: &Shared) {
    let mut seen_generation = 0;
    let mut idle_since = Instant::now();
    let mut turn_since = idle_since;
    while !shared.stop.load(Ordering::Relaxed) {
        if turn_since.elapsed() >= TURN {
            std::thread::yield_now();
            turn_since = Instant::now();
        }
        let state = shared.state.load(Ordering::Acquire);
        let generation = state / GENERATION;
        if state & OPEN == 0 || generation == seen_generation {
            if idle_since.elapsed() < SPIN {
                (0..16).for_each(|_| std::hint::spin_loop());
            } else {
                sleep(shared, seen_generation);
                idle_since = Instant::now();
                turn_since = idle_since;
            }
            continue;
        }
        if shared.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            continue;
        }
        let mut are_all_taken = true;
        let task = *shared.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task {
            let is_my_turn = || turn_since.elapsed() < TURN;
            let run = std::panic::AssertUnwindSafe(|| take_tasks(shared, task, is_my_turn));
            match std::panic::catch_unwind(run) {
                Ok(are_all) => are_all_taken = are_all,
                Err(_) => shared.panicked.store(true, Ordering::Relaxed),
            }
        }
        if are_all_taken {
            seen_generation = generation;
        }
        let left = shared.state.fetch_sub(1, Ordering::SeqCst) - 1;
        if left & INSIDE_MASK == 0 && shared.caller_sleeps.load(Ordering::SeqCst) {
            let caller = shared.caller.lock().unwrap_or_else(PoisonError::into_inner);
            caller.iter().for_each(Thread::unpark);
        }
        idle_since = Instant::now();
    }
}

/// Parks until a new generation opens. The count is raised before the last look at the state, and `run` looks at
/// the count after it has opened a generation, so no wake-up is lost.
fn sleep(shared: &Shared, seen_generation: u64) {
    shared.num_asleep.fetch_add(1, Ordering::SeqCst);
    loop {
        let state = shared.state.load(Ordering::SeqCst);
        let opened = state & OPEN != 0 && state / GENERATION != seen_generation;
        if opened || shared.stop.load(Ordering::SeqCst) {
            break;
        }
        std::thread::park();
    }
    shared.num_asleep.fetch_sub(1, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for num_threads in [1, 2, 5] {
            let mut pool = Pool::new(num_threads).unwrap();
            for round in 0..500 {
                let num_tasks = round % 23;
                let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_tasks, &|task_idx| {
                    counts[task_idx].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                if round % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let mut pool = Pool::new(3).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(64, &|task_idx| assert!(task_idx != 7, "task 7"));
        }));
        assert!(outcome.is_err());
        drop(pool);
    }
}
