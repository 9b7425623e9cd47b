//! Work units, the pools they wait in, and the streams that run them.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::hint::black_box;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

/// What is called with a unit's value of a key when the unit is freed.
pub(crate) type Destructor = unsafe extern "C" fn(*mut c_void);
/// What a unit runs.
pub(crate) type Function = unsafe extern "C" fn(*mut c_void);

/// A user-level thread, a tasklet, or the thread that initialised the library.
pub(crate) struct Unit {
    pub(crate) id: u64,
    pub(crate) body: Mutex<Body>,
    /// Where it waits; none for the primary one.
    pool: Option<Arc<Pool>>,
    /// How the running function suspends itself.
    yielder: AtomicPtr<Yielder<(), ()>>,
    pub(crate) done: AtomicBool,
    /// The stream that ran it last.
    stream: AtomicU64,
    /// Values by key, with what is to be done with them.
    pub(crate) values: Mutex<HashMap<u64, (*mut c_void, Option<Destructor>)>>,
    pub(crate) is_task: bool,
    /// Nobody has its handle: it is freed when it ends.
    unnamed: bool,
}

// SAFETY: [owned] a value is only handed back to the unit it belongs to, or to its destructor; the
// yielder is used by the unit alone.
unsafe impl Send for Unit {}
// SAFETY: [owned] as above.
unsafe impl Sync for Unit {}

pub(crate) enum Body {
    /// The thread that initialised the library.
    Primary,
    Thread(Coroutine<(), (), ()>),
    Task(Function, *mut c_void),
    Ended,
}

/// Units that are ready.
#[derive(Default)]
pub(crate) struct Pool(Mutex<VecDeque<Arc<Unit>>>);

/// A thread of the operating system that runs units of a pool.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

thread_local! {
    /// The unit that this thread of the operating system runs.
    static CURRENT: Cell<*const Unit> = const { Cell::new(ptr::null()) };
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number that no other has.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The unit that calls. It outlives the call.
pub(crate) fn current<'u>() -> Option<&'u Unit> {
    // Asked anew each time: a unit goes on in another thread after a suspension.
    let unit = black_box(current_pointer as fn() -> *const Unit)();
    // SAFETY: [owned] whoever runs a unit holds it as long.
    unsafe { unit.as_ref() }
}

fn current_pointer() -> *const Unit {
    CURRENT.get()
}

/// Makes the calling thread the primary one, or (with null) one that is not known.
pub(crate) fn set_current(unit: *const Unit) -> *const Unit {
    black_box(replace_current as fn(*const Unit) -> *const Unit)(unit)
}

fn replace_current(unit: *const Unit) -> *const Unit {
    CURRENT.replace(unit)
}

impl Unit {
    pub(crate) fn new(body: Body, pool: Option<Arc<Pool>>, unnamed: bool) -> Arc<Self> {
        Arc::new(Self {
            id: next_id(),
            is_task: matches!(body, Body::Task(..)),
            body: Mutex::new(body),
            pool,
            yielder: AtomicPtr::new(ptr::null_mut()),
            done: AtomicBool::new(false),
            stream: AtomicU64::new(u64::MAX),
            values: Mutex::new(HashMap::new()),
            unnamed,
        })
    }

    /// Makes `function` what the unit runs, on a stack of its own.
    ///
    /// # Safety
    /// The function can be called with `argument`, once, on any thread.
    pub(crate) unsafe fn start(
        self: &Arc<Self>,
        function: Function,
        argument: *mut c_void,
        stack_bytes: usize,
    ) -> Result<(), std::io::Error> {
        let stack = DefaultStack::new(stack_bytes)?;
        let itself: *const Self = Arc::as_ptr(self);
        let coroutine = Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
            let yielder = ptr::from_ref(yielder).cast_mut();
            // SAFETY: [owned] the stream that runs a unit holds it.
            unsafe { &*itself }.yielder.store(yielder, Ordering::Relaxed);
            // SAFETY: the caller's promise.
            unsafe { function(argument) };
        });
        *lock(&self.body) = Body::Thread(coroutine);
        Ok(())
    }

    /// Lets the calling unit wait while others run.
    pub(crate) fn suspend(&self) {
        match &self.pool {
            Some(_) if !self.is_task => {
                let yielder = self.yielder.load(Ordering::Relaxed);
                // SAFETY: [owned] it was stored when the unit began, and lives until it ends.
                unsafe { &*yielder }.suspend(());
            }
            _ => std::thread::yield_now(),
        }
    }

    /// Runs it until it is suspended or ends.
    fn run(self: Arc<Self>, stream: u64) {
        self.stream.store(stream, Ordering::Relaxed);
        let before = set_current(Arc::as_ptr(&self));
        let mut body = lock(&self.body);
        let ended = match &mut *body {
            Body::Thread(coroutine) => matches!(coroutine.resume(()), CoroutineResult::Return(())),
            Body::Task(function, argument) => {
                // SAFETY: whoever made the task promised that it can be called like this.
                unsafe { function(*argument) };
                true
            }
            Body::Primary | Body::Ended => true,
        };
        set_current(before);
        if ended {
            *body = Body::Ended;
        }
        drop(body);
        if !ended {
            if let Some(pool) = &self.pool {
                pool.push(Arc::clone(&self));
            }
            return;
        }
        if self.unnamed {
            self.destroy_values();
        }
        self.done.store(true, Ordering::Release);
    }

    /// As when it is freed.
    pub(crate) fn destroy_values(&self) {
        for (_, (value, destructor)) in mem::take(&mut *lock(&self.values)) {
            if let Some(destructor) = destructor.filter(|_| !value.is_null()) {
                // SAFETY: whoever made the key promised that it can be called with its values.
                unsafe { destructor(value) };
            }
        }
    }
}

impl Pool {
    pub(crate) fn push(&self, unit: Arc<Unit>) {
        lock(&self.0).push_back(unit);
    }

    /// The first unit that another stream ran last, so that they move wherever they can; else the
    /// first.
    fn pop(&self, stream: u64) -> Option<Arc<Unit>> {
        let mut units = lock(&self.0);
        let from_elsewhere =
            units.iter().take(16).position(|unit| unit.stream.load(Ordering::Relaxed) != stream);
        units.remove(from_elsewhere.unwrap_or(0))
    }
}

impl Stream {
    pub(crate) fn start(pool: Arc<Pool>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let stream = next_id();
            loop {
                match pool.pop(stream) {
                    Some(unit) => unit.run(stream),
                    // Asked after the pool was found empty: what was there before is done.
                    None if until.load(Ordering::Acquire) => break,
                    None => std::thread::yield_now(),
                }
            }
        });
        Self { stop, thread }
    }

    /// Ends it once its pool is empty.
    pub(crate) fn join(self) -> bool {
        self.stop.store(true, Ordering::Release);
        self.thread.join().is_ok()
    }
}
