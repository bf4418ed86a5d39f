//! The engine all plugins share, and the clock that interrupts them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Engine, PoolingAllocationConfig};

use crate::bindings::Imports;
use crate::limits::{MAX_CONFIGURED, MAX_MEMORY, SLICE, TICK};
use crate::store::State;
use crate::threads::{Half, keep_apart, slow_threads};

/// Instances alive at once: while a plugin is reloaded, requests under way hold the old ones.
const MAX_ALIVE: u32 = 2 * MAX_CONFIGURED;
/// Memory kept resident in a free slot, bytes: 1 MiB costs three times the time of 64 KiB.
const KEEP_RESIDENT: usize = 64 << 10;

/// The engine that compiles plugins, the linker with all they may import, and the threads they need.
pub(crate) struct Runtime {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<State>,
    ticker: Arc<Ticker>,
    thread: Option<JoinHandle<()>>,
    /// `None` only while it is dropped.
    slow: Option<tokio::runtime::Runtime>,
}

impl Runtime {
    pub(crate) fn new() -> Result<Runtime, wasmtime::Error> {
        let mut pool = PoolingAllocationConfig::default();
        pool.total_component_instances(MAX_ALIVE)
            .total_core_instances(8 * MAX_ALIVE)
            .total_memories(2 * MAX_ALIVE)
            .total_tables(8 * MAX_ALIVE)
            .total_stacks(MAX_ALIVE)
            .max_memory_size(MAX_MEMORY as usize)
            .linear_memory_keep_resident(KEEP_RESIDENT)
            .table_keep_resident(KEEP_RESIDENT);
        let mut config = Config::new();
        config.wasm_component_model(true).epoch_interruption(true).memory_init_cow(true);
        config.allocation_strategy(pool);
        let engine = Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        Imports::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        let ticker = Arc::new(Ticker::default());
        let thread = thread::Builder::new().name("plugin-clock".into()).spawn({
            let (ticker, engine) = (ticker.clone(), engine.clone());
            move || {
                keep_apart(Half::Clock);
                ticker.run(&engine);
            }
        })?;
        Ok(Runtime { engine, linker, ticker, thread: Some(thread), slow: Some(slow_threads()?) })
    }

    /// Goes on with a call that takes long, where it holds up no request. Dropping the future ends it.
    pub(crate) async fn go_on<T>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, tokio::task::JoinError>
    where
        T: Send + 'static,
    {
        let _quick = Counted::new(&self.ticker.slow);
        let slow = self.slow.as_ref().expect("it is there until this is dropped");
        AbortOnDropHandle::new(slow.spawn(call)).await
    }

    /// Keeps the clock going until the guard drops.
    pub(crate) fn ticking(&self) -> Counted<'_> {
        let ticking = Counted::new(&self.ticker.active);
        // Counted before this is read: a clock that is going to sleep sees the call, or is seen asleep here.
        if self.ticker.asleep.load(Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        ticking
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.ticker.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        if let Some(slow) = self.slow.take() {
            // Not waited for: this may be dropped inside of a task, where tokio panics if a runtime waits.
            slow.shutdown_background();
        }
    }
}

/// A clock that stands still while no plugin runs: an idle node does not wake a thousand times a second.
/// It is quick while there are slow calls.
#[derive(Default)]
struct Ticker {
    /// Calls under way: while there are any, the clock ticks.
    active: AtomicUsize,
    /// Those of them that are slow.
    slow: AtomicUsize,
    asleep: AtomicBool,
    stop: AtomicBool,
}

impl Ticker {
    fn run(&self, engine: &Engine) {
        /// Time without a call before it sleeps, without a slow one before it slows down: under steady load it
        /// never has to be woken.
        const PATIENCE: Duration = Duration::from_millis(100);
        let mut last_call = Instant::now();
        let mut last_slow = None;
        while !self.stop.load(Ordering::SeqCst) {
            let quick = last_slow.is_some_and(|last: Instant| last.elapsed() < PATIENCE);
            thread::sleep(if quick { SLICE } else { TICK });
            engine.increment_epoch();
            let now = Instant::now();
            if self.slow.load(Ordering::SeqCst) > 0 {
                last_slow = Some(now);
            }
            if self.active.load(Ordering::SeqCst) > 0 {
                last_call = now;
            }
            if now.duration_since(last_call) < PATIENCE {
                continue;
            }
            self.asleep.store(true, Ordering::SeqCst);
            // A call that began before it saw us asleep is seen here; one after it wakes us.
            if self.active.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.asleep.store(false, Ordering::SeqCst);
            last_call = Instant::now();
        }
    }
}

/// One more of something, until this drops.
pub(crate) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
