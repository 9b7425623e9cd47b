//! Loom's atomics with two additions, and how the models are run.
//!
//! Loom takes a SeqCst access for an `AcqRel` one; only its fences have a total order. Here a fence
//! precedes each SeqCst access, as compilers do for machines that know nothing between (the
//! "leading fence" mapping of C++ atomics to Power): what holds in a model holds there too.
//!
//! And a thread can be mortal: it stops for ever before a chosen one of its accesses to shared
//! memory, as a process does that is killed. Whoever joins it has learnt of its death.
//!
//! To run the models:
//! `RUSTFLAGS="--cfg hshm_loom" CARGO_TARGET_DIR=target/loom cargo test -p hshm-memory --release --lib loom`

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as PlainOrdering};

pub(crate) use loom::sync::atomic::Ordering;

loom::thread_local! {
    /// Accesses that the running thread may still make.
    static STEPS_LEFT: Cell<u32> = Cell::new(u32::MAX);
}

/// What a mortal thread unwinds with.
struct Died;

/// To be called before each access.
fn step(order: Ordering) {
    let left = STEPS_LEFT.with(Cell::get);
    if left == 0 {
        resume_unwind(Box::new(Died));
    }
    STEPS_LEFT.with(|steps| steps.set(left - 1));
    if order == Ordering::SeqCst {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

macro_rules! model_atomic {
    ($name:ident, $value:ty) => {
        #[derive(Debug)]
        pub(crate) struct $name(loom::sync::atomic::$name);

        #[allow(dead_code, reason = "the interface is that of the standard library's")]
        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            /// # Safety
            /// Never called: a model has no mapping.
            pub(crate) unsafe fn from_ptr<'a>(address: *mut $value) -> &'a Self {
                unreachable!("a model has no mapping, and nothing at {address:?}")
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                step(order);
                self.0.load(order)
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                step(order);
                self.0.store(value, order);
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                step(order);
                self.0.swap(value, order)
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                step(success);
                self.0.compare_exchange(current, new, success, failure)
            }

            pub(crate) fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }

            pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                step(order);
                self.0.fetch_add(value, order)
            }

            pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                step(order);
                self.0.fetch_or(value, order)
            }

            pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                step(order);
                self.0.fetch_and(value, order)
            }

            pub(crate) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                step(order);
                self.0.fetch_max(value, order)
            }
        }
    };
}

model_atomic!(AtomicU32, u32);
model_atomic!(AtomicU64, u64);

/// Runs `model` in every order of its threads' accesses that takes at most `preemptions`
/// preemptions, or `LOOM_MAX_PREEMPTIONS` if that is set.
///
/// What is to be explored has to be done by threads that the model spawns: the first one was found
/// not to be preempted before it had waited for another.
pub(crate) fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(model);
}

/// A death to come, if its victim lives to make so many accesses.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    steps: u32,
    came: Arc<AtomicBool>,
}

impl Death {
    /// Runs `f` until the death; `None` if it did not end before.
    pub(crate) fn await_in<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        STEPS_LEFT.with(|left| left.set(self.steps));
        let result = catch_unwind(AssertUnwindSafe(f));
        STEPS_LEFT.with(|left| left.set(u32::MAX));
        match result {
            Ok(value) => Some(value),
            Err(reason) if reason.is::<Died>() => {
                self.came.store(true, PlainOrdering::Relaxed);
                None
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Explores `model` with a death before the victim's first access, its second, and so on, until
/// it lives in every order.
pub(crate) fn explore_deaths(
    preemptions: usize,
    model: impl Fn(Death) + Clone + Send + Sync + 'static,
) {
    for steps in 0.. {
        let death = Death { steps, came: Arc::new(AtomicBool::new(false)) };
        let (model, this) = (model.clone(), death.clone());
        explore(preemptions, move || model(this.clone()));
        if !death.came.load(PlainOrdering::Relaxed) {
            assert!(steps > 0, "the victim makes at least one access");
            return;
        }
    }
}
