//! The engine all plugins share, and the clock that interrupts them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Engine, PoolingAllocationConfig};

use crate::bindings::Imports;
use crate::config::MAX_MEMORY;
use crate::imports::State;

/// Instances of all configured plugins at most.
pub(crate) const MAX_CONFIGURED: u32 = 512;
/// Instances alive at once: while a plugin is reloaded, requests under way hold the old ones.
const MAX_ALIVE: u32 = 2 * MAX_CONFIGURED;
/// Core instances in one component at most: Rust's have 3, Python's more than 33.
pub(crate) const MAX_CORE_INSTANCES: usize = 100;
/// How often a call is asked whether it has run out of time; so also how long it may hold up other requests.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Memory kept resident in a free slot, bytes: 1 MiB costs three times the time of 64 KiB.
const KEEP_RESIDENT: usize = 64 << 10;

/// Compiles and links plugins.
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
            move || ticker.run(&engine)
        })?;
        Ok(Runtime { engine, linker, ticker, thread: Some(thread), slow: Some(slow_threads()?) })
    }

    /// Goes on with a call that takes long, where it holds up no request. Dropping the handle ends it.
    pub(crate) fn go_on<T>(&self, call: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T>
    where
        T: Send + 'static,
    {
        let slow = self.slow.as_ref().expect("it is there until this is dropped");
        AbortOnDropHandle::new(slow.spawn(call))
    }

    /// Keeps the clock going until the guard drops.
    pub(crate) fn ticking(&self) -> Ticking<'_> {
        self.ticker.active.fetch_add(1, Ordering::SeqCst);
        if self.ticker.asleep.load(Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        Ticking(&self.ticker)
    }
}

thread_local! {
    /// Is this a thread of slow calls?
    static SLOW: Cell<bool> = const { Cell::new(false) };
}

/// Called by a call that still runs. On a thread of slow calls, every second tick is others': a thread that never
/// sleeps keeps its core for as long as the system's scheduler lets it, some milliseconds.
pub(crate) fn rest() {
    if SLOW.get() {
        thread::sleep(TICK);
    }
}

fn slow_threads() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .thread_name("plugin-slow")
        .on_thread_start(|| SLOW.set(true))
        .build()
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.ticker.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        if let Some(slow) = self.slow.take() {
            slow.shutdown_background();
        }
    }
}

/// A clock that stands still while no plugin runs: an idle node does not wake a thousand times a second.
#[derive(Default)]
struct Ticker {
    active: AtomicUsize,
    asleep: AtomicBool,
    stop: AtomicBool,
}

impl Ticker {
    fn run(&self, engine: &Engine) {
        /// Ticks without a call before it sleeps: under steady load it never has to be woken.
        const PATIENCE: u32 = 100;
        let mut idle = 0;
        while !self.stop.load(Ordering::SeqCst) {
            thread::sleep(TICK);
            engine.increment_epoch();
            idle = if self.active.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
            if idle < PATIENCE {
                continue;
            }
            self.asleep.store(true, Ordering::SeqCst);
            // A call that began before it saw us asleep is seen here; one after it wakes us.
            if self.active.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.asleep.store(false, Ordering::SeqCst);
            idle = 0;
        }
    }
}

/// A call is under way.
pub(crate) struct Ticking<'a>(&'a Ticker);

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}
