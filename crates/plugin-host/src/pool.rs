//! Instances of one version of a plugin: taken for one call at a time, put back only after a clean return.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::{ComponentNamedList, Lift, Resource, TypedFunc};
use wasmtime::{Store, UpdateDeadline};

use crate::bindings::piko::plugin::types::Verdict;
use crate::clock::{CallClock, Turn};
use crate::component::{Compiled, LoadError};
use crate::config::{Isolation, PluginConfig};
use crate::engine::Runtime;
use crate::fields::MAX_PASSED;
use crate::handles::{RequestRes, ResponseRes};
use crate::lines;
use crate::shared::{Cause, Shared};
use crate::store::{Limiter, State, Subject};

/// Calls after which an instance is replaced: what it leaks does not grow for ever.
const MAX_CALLS: u32 = 10_000;
/// How long a new instance may take to start, `init` included: Python's takes milliseconds.
const INIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls after one that had to be cut that are not trusted to be quick.
const WARY: u32 = 64;
/// A call that ended badly.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) cause: Cause,
    pub(crate) detail: String,
}

/// The instances of one version, and what making and calling one needs.
pub(crate) struct Pool {
    runtime: Arc<Runtime>,
    pub(crate) compiled: Compiled,
    shared: Arc<Shared>,
    init: String,
    memory: usize,
    timeout: Duration,
    isolation: Isolation,
    permits: Semaphore,
    idle: Mutex<Vec<Instance>>,
    /// Calls that begin on the threads of slow ones, since one had to be cut just now.
    wary: AtomicU32,
}

/// One instance, in a store of its own.
struct Instance {
    store: Store<State>,
    on_request: Option<TypedFunc<(Resource<RequestRes>,), (Verdict,)>>,
    on_response: Option<TypedFunc<(Resource<ResponseRes>,), ()>>,
    calls: u32,
}

/// Where a call's time ran out.
#[derive(Debug, thiserror::Error)]
#[error("took too long")]
struct TimeIsUp;

impl Pool {
    pub(crate) fn new(
        runtime: Arc<Runtime>,
        compiled: Compiled,
        shared: Arc<Shared>,
        config: &PluginConfig,
    ) -> Result<Pool, LoadError> {
        Ok(Pool {
            runtime,
            compiled,
            shared,
            init: config.init_text().map_err(LoadError::Refused)?,
            memory: config.memory.0 as usize,
            timeout: config.timeout.into(),
            isolation: config.isolation,
            permits: Semaphore::new(config.max_instances as usize),
            idle: Mutex::default(),
            wary: AtomicU32::new(0),
        })
    }

    /// Makes the first instance: does the plugin take its configuration?
    pub(crate) async fn check(&self) -> Result<(), LoadError> {
        let _ticking = self.runtime.ticking();
        let instance = self.instantiate().await?;
        if self.isolation == Isolation::Pooled {
            self.idle.lock().push(instance);
        }
        Ok(())
    }

    /// Calls `on-request`; gives back what was edited.
    pub(crate) async fn on_request(&self, subject: Subject) -> Result<(Verdict, Subject), Failed> {
        let (_permit, instance) = self.take(subject).await?;
        let Some(call) = instance.on_request else { return Err(no_hook()) };
        let ((verdict,), instance) = self.run(instance, call).await?;
        Ok((verdict, self.put_back(instance)))
    }

    /// Calls `on-response`; gives back what was edited.
    pub(crate) async fn on_response(&self, subject: Subject) -> Result<Subject, Failed> {
        let (_permit, instance) = self.take(subject).await?;
        let Some(call) = instance.on_response else { return Err(no_hook()) };
        let ((), instance) = self.run(instance, call).await?;
        Ok(self.put_back(instance))
    }

    /// One call: here, since it takes microseconds; but one that still runs after a tick of the engine's clock
    /// goes on elsewhere, so that no request waits for it but its own. After one that had to be cut, the next
    /// ones begin there.
    async fn run<P, R>(
        &self,
        mut instance: Instance,
        call: TypedFunc<(Resource<P>,), R>,
    ) -> Result<(R, Instance), Failed>
    where
        P: 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let _ticking = self.runtime.ticking();
        let mut call = Box::pin(async move {
            match call.call_async(&mut instance.store, (Resource::new_borrow(0),)).await {
                Ok(returned) => Ok((returned, instance)),
                Err(e) => Err(classify(&e, &instance.store)),
            }
        });
        // `checked_sub` stops at 0, so a race for the last one is harmless.
        let wary = self.wary.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        // Polled once: a call that is not ready by then has run for a tick, and holds up the requests of this thread.
        if !wary && let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await {
            return done;
        }
        let done = self.runtime.go_on(call).await;
        let done = done
            .unwrap_or_else(|e| Err(Failed { cause: Cause::Trap, detail: format!("its call ended: {e}") }));
        if done.as_ref().is_err_and(|failed| failed.cause == Cause::Deadline) {
            self.wary.store(WARY, Relaxed);
        }
        done
    }

    /// An instance, armed for one call. Dropped with the call unless it is put back.
    async fn take(&self, subject: Subject) -> Result<(SemaphorePermit<'_>, Instance), Failed> {
        // First without a timer: mostly an instance is free.
        let permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => match tokio::time::timeout(self.timeout, self.permits.acquire()).await {
                Ok(Ok(permit)) => permit,
                _ => {
                    let detail = format!("no instance came free within {:?}", self.timeout);
                    return Err(Failed { cause: Cause::Busy, detail });
                }
            },
        };
        let idle = self.idle.lock().pop();
        let mut instance = match idle {
            Some(instance) => instance,
            None => {
                let _ticking = self.runtime.ticking();
                let made = self.instantiate().await;
                made.map_err(|e| Failed { cause: Cause::Init, detail: format!("a new instance {e}") })?
            }
        };
        let state = instance.store.data_mut();
        state.subject = subject;
        state.clock = CallClock::start(self.timeout);
        // Counted from now: an instance out of the pool has passed its old deadline long ago.
        instance.store.set_epoch_deadline(1);
        Ok((permit, instance))
    }

    fn put_back(&self, mut instance: Instance) -> Subject {
        let subject = std::mem::take(&mut instance.store.data_mut().subject);
        instance.calls += 1;
        if self.isolation == Isolation::Pooled && instance.calls < MAX_CALLS {
            self.idle.lock().push(instance);
        }
        subject
    }

    async fn instantiate(&self) -> Result<Instance, LoadError> {
        let state = State {
            shared: self.shared.clone(),
            limiter: Limiter::new(self.memory, &self.shared),
            clock: CallClock::start(INIT_TIMEOUT),
            subject: Subject::default(),
        };
        let mut store = Store::new(&self.runtime.engine, state);
        store.limiter(|state| &mut state.limiter);
        // A list may name the same memory a thousand times: without a limit the node would copy it as often.
        store.set_hostcall_fuel(self.memory.min(MAX_PASSED));
        store.epoch_deadline_callback(|mut store| match store.data_mut().clock.turn() {
            Turn::Continue => Ok(UpdateDeadline::Continue(1)),
            Turn::Yield => Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now()))),
            Turn::Over => Err(TimeIsUp.into()),
        });
        store.set_epoch_deadline(1);
        let failed = |e: &wasmtime::Error, store: &Store<State>| LoadError::Init(classify(e, store).detail);
        let pre = &self.compiled.pre;
        let instance = match pre.instantiate_async(&mut store).await {
            Ok(instance) => instance,
            Err(e) => return Err(failed(&e, &store)),
        };
        let link = |e: wasmtime::Error| LoadError::Link(format!("{e:#}"));
        let compiled = &self.compiled;
        let init = instance
            .get_typed_func::<(&str,), (Result<(), String>,)>(&mut store, compiled.init)
            .map_err(link)?;
        let on_request = compiled.on_request.map(|at| instance.get_typed_func(&mut store, at));
        let on_response = compiled.on_response.map(|at| instance.get_typed_func(&mut store, at));
        let (on_request, on_response) =
            (on_request.transpose().map_err(link)?, on_response.transpose().map_err(link)?);
        match init.call_async(&mut store, (&self.init,)).await {
            Ok((Ok(()),)) => Ok(Instance { store, on_request, on_response, calls: 0 }),
            Ok((Err(reason),)) => Err(LoadError::Refused(lines::cut(&reason).to_owned())),
            Err(e) => Err(failed(&e, &store)),
        }
    }
}

fn no_hook() -> Failed {
    Failed { cause: Cause::Init, detail: "has no such hook".into() }
}

/// Why wasmtime stopped a call: what the metrics count it as, and the words for the log.
fn classify(e: &wasmtime::Error, store: &Store<State>) -> Failed {
    let limiter = &store.data().limiter;
    if e.downcast_ref::<TimeIsUp>().is_some() {
        return Failed { cause: Cause::Deadline, detail: "took longer than its timeout".into() };
    }
    // A guest that gets no memory mostly traps: the limit is the cause then, not the trap.
    if limiter.refused {
        let detail = format!("asked for more memory than {} bytes", limiter.most);
        return Failed { cause: Cause::Memory, detail };
    }
    // wasmtime has no type for this error, only these words.
    if e.root_cause().to_string().contains("fuel allocated for hostcalls has been exhausted") {
        let most = limiter.most.min(MAX_PASSED);
        let detail = format!("passed more than {most} bytes to the node in one call");
        return Failed { cause: Cause::Invalid, detail };
    }
    let detail = match e.downcast_ref::<wasmtime::Trap>() {
        Some(trap) => trap.to_string(),
        None => format!("{:#}", e.root_cause()),
    };
    Failed { cause: Cause::Trap, detail }
}
