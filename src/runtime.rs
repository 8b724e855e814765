//! Time, threads, shutdown and health: what every part shares with the process it lives in.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub mod machine;

/// Microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;

/// The only source of time. Order never depends on it: records are ordered by offset alone.
pub trait Clock: Send + Sync + fmt::Debug {
    /// What people call the time: it may be set, forwards and back.
    fn now(&self) -> Micros;
    /// For intervals: never goes back.
    fn instant(&self) -> Instant;
}

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Micros {
        chrono::Utc::now().timestamp_micros()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that stands still until a test moves it.
#[derive(Debug)]
pub struct ManualClock {
    begun: Instant,
    begun_at: Micros,
    passed: AtomicI64,
}

impl ManualClock {
    pub fn at(now: Micros) -> Self {
        Self { begun: Instant::now(), begun_at: now, passed: AtomicI64::new(0) }
    }

    pub fn advance(&self, by: Duration) {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        self.passed.fetch_add(micros, Ordering::SeqCst);
    }

    fn passed(&self) -> Micros {
        self.passed.load(Ordering::SeqCst)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Micros {
        self.begun_at + self.passed()
    }

    fn instant(&self) -> Instant {
        self.begun + Duration::from_micros(self.passed().unsigned_abs())
    }
}

/// Tells every part that it is to end. Cloning shares the signal.
#[derive(Debug, Clone)]
pub struct Shutdown {
    signal: Arc<watch::Sender<bool>>,
    /// Of the wholes that this is a part of: they end it too.
    outer: Vec<Arc<watch::Sender<bool>>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { signal: Arc::new(watch::Sender::new(false)), outer: Vec::new() }
    }
}

impl Shutdown {
    /// For parts that may end before the whole: triggered with this one, or alone.
    #[must_use]
    pub fn of_part(&self) -> Self {
        Self { outer: self.signals().cloned().collect(), ..Self::default() }
    }

    pub fn trigger(&self) {
        self.signal.send_replace(true);
    }

    pub fn is_triggered(&self) -> bool {
        self.signals().any(|signal| *signal.borrow())
    }

    /// Completes once [`Shutdown::trigger`] was called.
    pub async fn wait(&self) {
        let mut receivers: Vec<_> = self.signals().map(|signal| signal.subscribe()).collect();
        let waiting = receivers.iter_mut().map(|receiver| Box::pin(receiver.wait_for(|triggered| *triggered)));
        // The senders live in self, so no channel can close while we wait.
        let _ = futures::future::select_all(waiting).await;
    }

    fn signals(&self) -> impl Iterator<Item = &Arc<watch::Sender<bool>>> {
        std::iter::once(&self.signal).chain(&self.outer)
    }
}

/// Whether the process may be trusted. A background part that fails says so here; `/healthz` and SQL show it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Vec<String>>>);

impl Health {
    /// Records a failure from which `part` does not recover by itself.
    pub fn poison(&self, part: &str, reason: impl fmt::Display) {
        tracing::error!(part, %reason, "part failed for good");
        self.0.lock().push(format!("{part}: {reason}"));
    }

    /// The failures so far, oldest first; empty means healthy.
    pub fn failures(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// Starts a task on the current Tokio runtime. A panic poisons `health` under the task's name.
pub fn spawn<F>(name: &'static str, health: &Health, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let health = health.clone();
    tokio::spawn(async move {
        if let Err(error) = tokio::spawn(future).await
            && error.is_panic()
        {
            health.poison(name, "panicked");
        }
    })
}

/// Starts an operating-system thread with `name`. A panic poisons `health` under it.
pub fn spawn_thread<F>(name: &'static str, health: &Health, work: F) -> std::thread::JoinHandle<()>
where
    F: FnOnce() + Send + 'static,
{
    let health = health.clone();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                health.poison(name, "panicked");
            }
        })
        .expect("the system refuses a new thread only when it is out of resources")
}

/// While it lives, the allocator gives memory that is free back to the system after 10 ms instead of a second: batch work
/// frees much of what it had soon after, and would have it twice. Intake would get the same pages again and again, so it
/// is not for always. There is one at a time.
#[derive(Debug)]
pub struct Thrift {
    before: std::ffi::c_long,
}

impl Thrift {
    /// `mi_option_purge_delay`, in milliseconds.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

    pub fn begin() -> Self {
        // SAFETY: reads and sets a number that the allocator reads; any thread may do so at any time.
        unsafe {
            let before = libmimalloc_sys::mi_option_get(Self::PURGE_DELAY);
            libmimalloc_sys::mi_option_set(Self::PURGE_DELAY, 10);
            Self { before }
        }
    }
}

impl Drop for Thrift {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libmimalloc_sys::mi_option_set(Self::PURGE_DELAY, self.before) };
    }
}

/// An error with all its causes, for the one place where it is handled.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
