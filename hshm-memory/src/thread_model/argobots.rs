//! The user-level threads of Argobots, whose library is found at run time.
//!
//! A user-level thread runs on an *execution stream*, which is a thread of the operating system,
//! until it yields; then another runs there, and the first may go on in another stream.
//!
//! # What is a thread's own
//!
//! [`ThreadModel::get_tid`] and [`ThreadModel::get_tls`] are of the user-level thread: they stay the
//! same wherever it goes on. A thread that is no user-level one (it was started by other means, or
//! the library is not in use) has its number and storage from the operating system.
//!
//! Heaps are otherwise: the default memory context finds the heap of the *stream*. User-level
//! threads come by the thousand, are short, and an allocator has at most 4095 worker slots; streams
//! are as many as processors. Within a stream one user-level thread runs at a time and changes
//! with another only where it yields, so they share its heap without a lock, and a heap is borrowed
//! no longer than one operation, which never yields: what waits with a heap in hand keeps the
//! stream, and for a bounded time (`pause_os_thread`). A debug build asserts that (`NoPause`). A
//! user-level thread that wants a heap for itself makes one with `create_tls` and passes the
//! context.
//!
//! # Looking up the stream's heap
//!
//! A compiler takes the address of a `thread_local!` for the same all through a function, though
//! after a yield in its middle another thread of the operating system runs it. What is inlined into
//! the application, which may yield between two allocations, would then use the heap of a stream
//! that is using it too. So under this model each access is made in a function that is called
//! through a pointer the compiler knows nothing about (`by_pointer`): it can neither inline
//! it, nor keep what it found. `#[inline(never)]` is not enough: that a function does nothing but
//! compute an address is found out without inlining it. An operation costs an indirect call more,
//! about a nanosecond. The same holds for whatever else is kept for each thread of the operating
//! system, here and in libraries that this one uses (`robust::holder`, `allocator::contexts`).
//!
//! # Locks
//!
//! A lock between processes names threads of the operating system as its holders, since it is
//! those whose death can be known. It is held within one operation, which does not yield; who waits
//! for it yields, may be elsewhere afterwards, and asks anew who it is.
//!
//! # What is asked of the library
//!
//! Eight functions, all there since version 1.0. Whether the caller is a user-level thread,
//! `ABT_self_get_type` is asked: it alone answers any thread, also where the library was built
//! without its checks (`--disable-checks`), where the others take for granted that there is a
//! stream. Nothing here passes one of the library's null handles, which differ with that choice.

use std::env;
use std::ffi::{OsString, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use libloading::os::unix::Library;

use super::{
    Destructor, Pthreads, ThreadId, ThreadLocalKey, ThreadModel, ThreadModelError, ThreadModelKind,
    untyped,
};

/// Names the library to use, if it is not to be looked for.
const LIBRARY_VARIABLE: &str = "HSHM_ARGOBOTS_LIB";
/// Its usual names.
const LIBRARY_NAMES: &[&str] = &["libabt.so.1", "libabt.so", "libabt.1.dylib", "libabt.dylib"];
/// Distinguishes the numbers of user-level threads from the operating system's.
const USER_LEVEL: u64 = 1 << 63;

/// User-level threads of Argobots where there are any, and the operating system's elsewhere.
///
/// The library is the one that the environment variable `HSHM_ARGOBOTS_LIB` names, else the one that
/// the process has, else one by its usual name (`libabt.so.1`). It is looked for when this is first
/// used, and never initialised: that is the application's to do. Without it, and for threads that
/// are no user-level ones, everything is as with [`Pthreads`]; [`Argobots::library`] says why.
///
/// # Examples
/// ```
/// use hshm_memory::thread_model::{Argobots, ThreadModel, ThreadModelKind};
///
/// assert_eq!(Argobots.kind(), ThreadModelKind::Argobots);
/// // No user-level thread runs this.
/// assert!(!Argobots.is_user_level());
/// assert!(!Argobots.get_tid().is_null());
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Argobots;

impl Argobots {
    /// Whether the library was found.
    ///
    /// # Errors
    /// [`ThreadModelError::Library`] if it was not, and then all threads are the operating system's.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::thread_model::Argobots;
    ///
    /// if let Err(error) = Argobots.library() {
    ///     println!("going on with the operating system's threads: {error}");
    /// }
    /// ```
    pub fn library(&self) -> Result<(), &'static ThreadModelError> {
        loaded().as_ref().map(|_| ())
    }

    /// Whether a user-level thread runs this.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::thread_model::Argobots;
    ///
    /// let ours = std::thread::spawn(|| Argobots.is_user_level());
    /// assert!(!ours.join().expect("an answer"));
    /// ```
    #[must_use]
    pub fn is_user_level(&self) -> bool {
        here().is_some()
    }
}

impl ThreadModel for Argobots {
    fn kind(&self) -> ThreadModelKind {
        ThreadModelKind::Argobots
    }

    /// A user-level thread yields until the time is over, since sleeping would stop its whole
    /// stream.
    fn sleep_for_us(&self, microseconds: u64) {
        let time = Duration::from_micros(microseconds);
        let began = Instant::now();
        while began.elapsed() < time {
            if !yield_user_level() {
                std::thread::sleep(time.saturating_sub(began.elapsed()));
            }
        }
    }

    fn yield_now(&self) {
        if !yield_user_level() {
            Pthreads.yield_now();
        }
    }

    fn create_tls<T>(&self, data: *mut T) -> Result<ThreadLocalKey<T>, ThreadModelError> {
        let key = ThreadLocalKey::create(None)?;
        self.set_tls(&key, data)?;
        Ok(key)
    }

    unsafe fn create_tls_with_destructor<T>(
        &self,
        data: *mut T,
        destructor: unsafe extern "C" fn(*mut T),
    ) -> Result<ThreadLocalKey<T>, ThreadModelError> {
        let key = ThreadLocalKey::create(Some(untyped(destructor)))?;
        self.set_tls(&key, data)?;
        Ok(key)
    }

    fn get_tls<T>(&self, key: &ThreadLocalKey<T>) -> *mut T {
        match here() {
            Some(Here { api, .. }) => key.user_level.get(api).cast(),
            None => Pthreads.get_tls(key),
        }
    }

    fn set_tls<T>(&self, key: &ThreadLocalKey<T>, data: *mut T) -> Result<(), ThreadModelError> {
        match here() {
            Some(Here { api, .. }) => key.user_level.set(api, data.cast()),
            None => Pthreads.set_tls(key, data),
        }
    }

    /// The numbers of user-level threads have the highest bit set.
    fn get_tid(&self) -> ThreadId {
        let Some(Here { api, .. }) = here() else { return Pthreads.get_tid() };
        let mut number = 0;
        // SAFETY: [ffi] called by a user-level thread; the number is stored in a local.
        match unsafe { (api.self_get_thread_id)(&raw mut number) } {
            SUCCESS => ThreadId::new(number | USER_LEVEL),
            _ => Pthreads.get_tid(),
        }
    }
}

/// Lets another user-level thread run; false if the caller is none, or one that cannot wait (a
/// tasklet).
fn yield_user_level() -> bool {
    match here() {
        // SAFETY: [ffi] called by a user-level thread that has a stack of its own.
        Some(Here { api, can_yield: true }) => (unsafe { (api.thread_yield)() }) == SUCCESS,
        _ => false,
    }
}

/// What the library's functions return if nothing is wrong.
const SUCCESS: c_int = 0;
/// `ABT_UNIT_TYPE_THREAD`: a user-level thread with a stack.
const TYPE_THREAD: c_int = 0;
/// `ABT_UNIT_TYPE_TASK`: a tasklet, which runs to its end on its stream's stack.
const TYPE_TASK: c_int = 1;
/// `ABT_UNIT_TYPE_EXT`: a thread that Argobots does not know.
const TYPE_EXTERNAL: c_int = 3;

/// The library's functions.
#[derive(Debug)]
struct Api {
    initialized: unsafe extern "C" fn() -> c_int,
    self_get_type: unsafe extern "C" fn(*mut c_int) -> c_int,
    self_get_thread_id: unsafe extern "C" fn(*mut u64) -> c_int,
    thread_yield: unsafe extern "C" fn() -> c_int,
    key_create: unsafe extern "C" fn(Option<Destructor>, *mut *mut c_void) -> c_int,
    key_free: unsafe extern "C" fn(*mut *mut c_void) -> c_int,
    key_set: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
    key_get: unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> c_int,
    /// Keeps them where they are.
    _library: Library,
}

impl Api {
    fn of(library: Library) -> Result<Self, libloading::Error> {
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: [ffi] the type is that of the function of this name in abt.h.
                *unsafe { library.get($name) }?
            };
        }
        Ok(Self {
            initialized: symbol!(b"ABT_initialized\0"),
            self_get_type: symbol!(b"ABT_self_get_type\0"),
            self_get_thread_id: symbol!(b"ABT_self_get_thread_id\0"),
            thread_yield: symbol!(b"ABT_thread_yield\0"),
            key_create: symbol!(b"ABT_key_create\0"),
            key_free: symbol!(b"ABT_key_free\0"),
            key_set: symbol!(b"ABT_key_set\0"),
            key_get: symbol!(b"ABT_key_get\0"),
            _library: library,
        })
    }

    fn is_initialized(&self) -> bool {
        // SAFETY: [ffi] may be called at any time.
        (unsafe { (self.initialized)() }) == SUCCESS
    }
}

/// The library, for a caller that is a user-level thread.
struct Here {
    api: &'static Api,
    /// Whether others can run meanwhile.
    can_yield: bool,
}

/// Who calls: `None` for a thread of the operating system alone.
fn here() -> Option<Here> {
    let api = loaded().as_ref().ok()?;
    if !api.is_initialized() {
        return None;
    }
    let mut kind = TYPE_EXTERNAL;
    // SAFETY: [ffi] the library is initialised, and the answer is stored in a local.
    if unsafe { (api.self_get_type)(&raw mut kind) } != SUCCESS {
        return None;
    }
    match kind {
        TYPE_THREAD => Some(Here { api, can_yield: true }),
        TYPE_TASK => Some(Here { api, can_yield: false }),
        _ => None,
    }
}

type Loaded = Result<Api, ThreadModelError>;

/// The library, looked for once.
///
/// Threads that come at once may each look for it, and then one's find is used by all. Waiting for
/// one another (`Once`) would leave the child of a fork in the midst of it waiting for a thread that
/// it does not have.
fn loaded() -> &'static Loaded {
    static LOADED: AtomicPtr<Loaded> = AtomicPtr::new(ptr::null_mut());
    // ORDER: Acquire pairs with the Release below: what is found there is whole.
    let known = LOADED.load(Ordering::Acquire);
    // SAFETY: [owned] what was stored once is never freed.
    if let Some(known) = unsafe { known.as_ref() } {
        return known;
    }
    // On a stack of its own: a user-level thread's may be 16 KiB, too little for a loader.
    let found = std::thread::Builder::new().spawn(look_for_library).map(|look| look.join());
    let found = match found {
        Ok(Ok(found)) => found,
        // It cannot panic; and where no thread can be had, none is to be waited for.
        Ok(Err(_)) | Err(_) => Err(ThreadModelError::Library {
            tried: String::from("nothing"),
            why: String::from("no thread could be started to look for it"),
        }),
    };
    let found = Box::into_raw(Box::new(found));
    // ORDER: Release pairs with the Acquire above; and Acquire for another's find.
    let others =
        LOADED.compare_exchange(ptr::null_mut(), found, Ordering::AcqRel, Ordering::Acquire);
    match others {
        // SAFETY: [owned] stored, so never freed.
        Ok(_) => unsafe { &*found },
        Err(other) => {
            // SAFETY: [owned] nobody else has seen it. The library stays, by the other's handle.
            drop(unsafe { Box::from_raw(found) });
            // SAFETY: [owned] stored by another, so never freed.
            unsafe { &*other }
        }
    }
}

fn look_for_library() -> Loaded {
    if let Some(name) = env::var_os(LIBRARY_VARIABLE).filter(|name| !name.is_empty()) {
        return open(&name).map_err(|why| ThreadModelError::Library {
            tried: format!("{LIBRARY_VARIABLE}={}", name.display()),
            why,
        });
    }
    // The application may be linked with it, as a file of any name or as a part of itself.
    if let Ok(api) = Api::of(Library::this()) {
        return Ok(api);
    }
    let mut why = String::new();
    for name in LIBRARY_NAMES {
        match open(&OsString::from(name)) {
            Ok(api) => return Ok(api),
            Err(reason) if why.is_empty() => why = reason,
            Err(_) => {}
        }
    }
    Err(ThreadModelError::Library { tried: LIBRARY_NAMES.join(", "), why })
}

fn open(name: &OsString) -> Result<Api, String> {
    // SAFETY: [ffi] the library's initialisers run, which those of Argobots allow at any time.
    let library = unsafe { Library::new(name) }.map_err(|error| error.to_string())?;
    Api::of(library).map_err(|error| error.to_string())
}

/// A key of Argobots, made when a user-level thread first needs it: the library may be initialised
/// later than the key for the operating system's threads is made.
#[derive(Debug)]
pub(super) struct Key {
    /// Null until then.
    handle: AtomicPtr<c_void>,
    destructor: Option<Destructor>,
}

impl Key {
    pub(super) fn new(destructor: Option<Destructor>) -> Self {
        Self { handle: AtomicPtr::new(ptr::null_mut()), destructor }
    }

    fn get(&self, api: &Api) -> *mut c_void {
        // ORDER: Acquire pairs with the Release in `handle`: the key is whole.
        let handle = self.handle.load(Ordering::Acquire);
        let mut data = ptr::null_mut();
        if !handle.is_null() {
            // SAFETY: [ffi] called by a user-level thread, with a key that stands until this is
            // dropped; the pointer is stored in a local, and stays null on an error.
            unsafe { (api.key_get)(handle, &raw mut data) };
        }
        data
    }

    fn set(&self, api: &Api, data: *mut c_void) -> Result<(), ThreadModelError> {
        let handle = self.handle(api)?;
        // SAFETY: [ffi] as in `get`; the pointer is only kept.
        done(unsafe { (api.key_set)(handle, data) }, "ABT_key_set")
    }

    /// The key's handle, made by the first who asks.
    fn handle(&self, api: &Api) -> Result<*mut c_void, ThreadModelError> {
        // ORDER: Acquire pairs with the Release below.
        let known = self.handle.load(Ordering::Acquire);
        if !known.is_null() {
            return Ok(known);
        }
        let mut made = ptr::null_mut();
        // SAFETY: [ffi] the library is initialised, and the handle stored in a local; whoever gave
        // the destructor promised that it can be called with what is set.
        done(unsafe { (api.key_create)(self.destructor, &raw mut made) }, "ABT_key_create")?;
        // ORDER: Release pairs with the Acquire above; and Acquire for another's key.
        let others = self.handle.compare_exchange(
            ptr::null_mut(),
            made,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        match others {
            Ok(_) => Ok(made),
            Err(other) => {
                // SAFETY: [ffi] nobody else has seen this one.
                unsafe { (api.key_free)(&raw mut made) };
                Ok(other)
            }
        }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let mut handle = *self.handle.get_mut();
        if handle.is_null() {
            return;
        }
        if let Ok(api) = loaded()
            && api.is_initialized()
        {
            // SAFETY: [ffi] the key stands, and nobody has it any more. Where the library is no
            // longer initialised nothing may be called, and the few bytes of the key are lost.
            unsafe { (api.key_free)(&raw mut handle) };
        }
    }
}

fn done(code: c_int, call: &'static str) -> Result<(), ThreadModelError> {
    if code == SUCCESS { Ok(()) } else { Err(ThreadModelError::Argobots { call, code }) }
}
