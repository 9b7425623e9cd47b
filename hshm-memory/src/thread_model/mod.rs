//! Thread models: what a thread is, how it waits, and where it keeps what is its own.
//!
//! The model is chosen when the library is compiled: the operating system's threads by default, and
//! with the cargo feature `argobots` the user-level threads of Argobots, where there are any.
//! [`thread_model`] returns it, and [`ThreadModel::kind`] says at run time which it is.
//! Whatever waits inside the library waits through the model.
//!
//! # Examples
//! ```
//! use hshm_memory::thread_model::{ThreadModel, ThreadModelKind, thread_model};
//!
//! let model = thread_model();
//! # #[cfg(all(unix, not(feature = "argobots")))]
//! assert_eq!(model.kind(), ThreadModelKind::Pthreads);
//! let here = model.get_tid();
//! let there = std::thread::spawn(|| thread_model().get_tid()).join().expect("a thread id");
//! assert_ne!(here, there);
//! ```

/// The function itself, as a pointer. Where user-level threads are, the compiler knows nothing about
/// it, so that nothing which the function finds in thread-local storage is taken for known after a
/// yield; see `argobots.rs`.
#[cfg(all(unix, feature = "argobots"))]
macro_rules! by_pointer {
    ($function:expr) => {{
        let mut function = $function;
        #[allow(clippy::pointers_in_nomem_asm_block, reason = "nothing is read or written")]
        // SAFETY: [owned] nothing is done; only that, the compiler does not know.
        unsafe {
            std::arch::asm!(
                "/* {0} */",
                inout(reg) function,
                options(nomem, nostack, preserves_flags)
            );
        }
        function
    }};
}
#[cfg(not(all(unix, feature = "argobots")))]
macro_rules! by_pointer {
    ($function:expr) => {
        $function
    };
}
pub(crate) use by_pointer;

#[cfg(all(unix, feature = "argobots"))]
mod argobots;
#[cfg(unix)]
mod pthreads;
#[cfg(test)]
mod tests;
#[cfg(windows)]
mod windows;

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

#[cfg(all(unix, feature = "argobots"))]
pub use self::argobots::Argobots;
#[cfg(unix)]
use self::pthreads as os;
#[cfg(unix)]
pub use self::pthreads::Pthreads;
#[cfg(windows)]
use self::windows as os;
#[cfg(windows)]
pub use self::windows::Windows;
use crate::options::UnknownName;

/// The thread model of this build.
#[cfg(all(unix, not(feature = "argobots")))]
pub type DefaultThreadModel = Pthreads;
/// The thread model of this build.
#[cfg(all(unix, feature = "argobots"))]
pub type DefaultThreadModel = Argobots;
/// The thread model of this build.
#[cfg(windows)]
pub type DefaultThreadModel = Windows;

#[cfg(all(unix, not(feature = "argobots")))]
static MODEL: DefaultThreadModel = Pthreads;
#[cfg(all(unix, feature = "argobots"))]
static MODEL: DefaultThreadModel = Argobots;
#[cfg(windows)]
static MODEL: DefaultThreadModel = Windows;

/// The process's thread model.
///
/// # Examples
/// ```
/// use hshm_memory::thread_model::{ThreadModel, thread_model};
///
/// println!("threads are {}", thread_model().kind());
/// ```
#[must_use]
pub fn thread_model() -> &'static DefaultThreadModel {
    &MODEL
}

/// What a library that waits, and keeps something for each thread, asks of threads.
pub trait ThreadModel: Send + Sync + fmt::Debug {
    /// Which model this is.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::thread_model::{ThreadModel, ThreadModelKind, thread_model};
    ///
    /// match thread_model().kind() {
    ///     ThreadModelKind::Argobots => println!("user-level threads"),
    ///     other => println!("threads of the operating system: {other}"),
    /// }
    /// ```
    fn kind(&self) -> ThreadModelKind;

    /// Lets others run for at least `microseconds`, and then goes on.
    ///
    /// # Examples
    /// ```
    /// use std::time::{Duration, Instant};
    /// use hshm_memory::thread_model::{ThreadModel, thread_model};
    ///
    /// let before = Instant::now();
    /// thread_model().sleep_for_us(200);
    /// assert!(before.elapsed() >= Duration::from_micros(200));
    /// ```
    fn sleep_for_us(&self, microseconds: u64);

    /// Lets another thread run, if there is one that waits for the processor.
    ///
    /// # Examples
    /// ```
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use hshm_memory::thread_model::{ThreadModel, thread_model};
    ///
    /// static READY: AtomicBool = AtomicBool::new(false);
    /// let other = std::thread::spawn(|| READY.store(true, Ordering::Release));
    /// while !READY.load(Ordering::Acquire) {
    ///     thread_model().yield_now();
    /// }
    /// # other.join().expect("a thread that stores");
    /// ```
    fn yield_now(&self);

    /// Makes a key under which each thread keeps a pointer of its own, at first null; the calling
    /// thread's is `data`. Nothing is done with the pointers when a thread ends.
    ///
    /// # Errors
    /// [`ThreadModelError::Storage`] if there are no more keys, or no memory.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::thread_model::{ThreadModel, thread_model};
    ///
    /// let model = thread_model();
    /// let mut mine = 7;
    /// let key = model.create_tls(&raw mut mine)?;
    /// assert_eq!(model.get_tls(&key), &raw mut mine);
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| assert!(model.get_tls(&key).is_null()));
    /// });
    /// # Ok::<(), hshm_memory::thread_model::ThreadModelError>(())
    /// ```
    fn create_tls<T>(&self, data: *mut T) -> Result<ThreadLocalKey<T>, ThreadModelError>;

    /// The same, with a function to be called for each thread that ends while its pointer is not
    /// null. The pointer is null by then. A thread of the operating system calls it itself, unless
    /// the key was dropped before. For a user-level thread it is called when that is freed (not when
    /// it is joined), by whoever frees it, and also if the key was dropped before. Where a thread
    /// never ends, because the process does, it is not called.
    ///
    /// # Safety
    /// The destructor can be called with `data`, and with every pointer that is ever set under this
    /// key, when the thread that set it ends, and by another thread; until then, what it needs lives,
    /// whether or not the key does.
    ///
    /// # Errors
    /// As [`ThreadModel::create_tls`].
    ///
    /// # Examples
    /// ```
    /// use std::ptr;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use hshm_memory::thread_model::{ThreadModel, thread_model};
    ///
    /// static ENDED: AtomicU32 = AtomicU32::new(0);
    /// unsafe extern "C" fn ended(scratch: *mut u64) {
    ///     // SAFETY: only boxes are set, each once.
    ///     drop(unsafe { Box::from_raw(scratch) });
    ///     ENDED.fetch_add(1, Ordering::Relaxed);
    /// }
    /// let model = thread_model();
    /// // SAFETY: only boxes are set, and `ended` frees them.
    /// let key = unsafe { model.create_tls_with_destructor(ptr::null_mut(), ended) }?;
    /// std::thread::scope(|scope| {
    ///     // A scope waits for what its threads do, not for what is done when they end.
    ///     let work = scope.spawn(|| model.set_tls(&key, Box::into_raw(Box::new(5))));
    ///     work.join().expect("it did not panic")
    /// })?;
    /// assert_eq!(ENDED.load(Ordering::Relaxed), 1);
    /// # Ok::<(), hshm_memory::thread_model::ThreadModelError>(())
    /// ```
    unsafe fn create_tls_with_destructor<T>(
        &self,
        data: *mut T,
        destructor: unsafe extern "C" fn(*mut T),
    ) -> Result<ThreadLocalKey<T>, ThreadModelError>;

    /// The calling thread's pointer under `key`; null if it never set one.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::thread_model::{ThreadModel, thread_model};
    ///
    /// let mut mine = String::from("mine");
    /// let key = thread_model().create_tls(&raw mut mine)?;
    /// // SAFETY: the pointer is the one given, and the string is this thread's.
    /// assert_eq!(unsafe { &*thread_model().get_tls(&key) }, "mine");
    /// # Ok::<(), hshm_memory::thread_model::ThreadModelError>(())
    /// ```
    fn get_tls<T>(&self, key: &ThreadLocalKey<T>) -> *mut T;

    /// Sets the calling thread's pointer under `key`. The one before is forgotten.
    ///
    /// # Errors
    /// [`ThreadModelError::Storage`] if there is no memory for it.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::thread_model::{ThreadModel, thread_model};
    ///
    /// let (mut first, mut second) = (1, 2);
    /// let key = thread_model().create_tls(&raw mut first)?;
    /// thread_model().set_tls(&key, &raw mut second)?;
    /// assert_eq!(thread_model().get_tls(&key), &raw mut second);
    /// # Ok::<(), hshm_memory::thread_model::ThreadModelError>(())
    /// ```
    fn set_tls<T>(&self, key: &ThreadLocalKey<T>, data: *mut T) -> Result<(), ThreadModelError>;

    /// The calling thread's number, unlike that of any other thread of the process that is alive.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::thread_model::{ThreadId, ThreadModel, thread_model};
    ///
    /// assert_ne!(thread_model().get_tid(), ThreadId::NULL);
    /// ```
    fn get_tid(&self) -> ThreadId;
}

/// Lets others run: for the loops of this library that wait for another thread or process. Under
/// user-level threads the caller may go on in another thread of the operating system, so it holds
/// no reference into thread-local storage, and no heap that is its thread's, across this.
pub(crate) fn pause() {
    #[cfg(debug_assertions)]
    assert_eq!(by_pointer!(count_uses as fn(i32) -> i32)(0), 0, "a pause with a heap in use");
    thread_model().yield_now();
}

/// The same for at least `time`.
pub(crate) fn sleep(time: Duration) {
    #[cfg(debug_assertions)]
    assert_eq!(by_pointer!(count_uses as fn(i32) -> i32)(0), 0, "a sleep with a heap in use");
    thread_model().sleep_for_us(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
}

/// Whether the calling thread may wait in the kernel: a user-level one would stop all that share its
/// stream, perhaps the one that it waits for, and must [`pause`] or [`sleep`] instead.
#[cfg(all(target_os = "linux", not(hshm_loom)))]
pub(crate) fn may_block() -> bool {
    #[cfg(all(unix, feature = "argobots"))]
    return !thread_model().is_user_level();
    #[cfg(not(all(unix, feature = "argobots")))]
    true
}

/// Held where nothing may [`pause`], since another user-level thread of this stream would come upon
/// what is in use. Debug builds assert that nothing does; others spend nothing on it.
#[derive(Debug)]
pub(crate) struct NoPause(PhantomData<*const ()>);

impl NoPause {
    #[inline]
    pub(crate) fn begin() -> Self {
        #[cfg(debug_assertions)]
        by_pointer!(count_uses as fn(i32) -> i32)(1);
        Self(PhantomData)
    }
}

impl Drop for NoPause {
    #[inline]
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        by_pointer!(count_uses as fn(i32) -> i32)(-1);
    }
}

/// Adds to how many [`NoPause`] this thread of the operating system holds, and returns how many.
#[cfg(debug_assertions)]
fn count_uses(change: i32) -> i32 {
    thread_local! {
        static USES: std::cell::Cell<i32> = const { std::cell::Cell::new(0) };
    }
    USES.with(|uses| {
        uses.set(uses.get() + change);
        uses.get()
    })
}

/// Gives up the processor without letting another user-level thread run in this thread of the
/// operating system: for the few places that wait while they hold what is the thread's own. What
/// they wait for must not depend on such another one, and the wait must be bounded.
pub(crate) fn pause_os_thread() {
    std::thread::yield_now();
}

/// The number of the operating system's thread that runs, cut to 32 bits: for people to read.
pub(crate) fn os_thread_number() -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "as said")]
    let number = os::thread_number() as u32;
    number
}

/// A thread model, by the name that users write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThreadModelKind {
    /// Threads of POSIX systems.
    Pthreads,
    /// Threads of Windows.
    Windows,
    /// User-level threads of Argobots, as in the Mochi framework.
    Argobots,
    /// Threads of a CUDA device. Named only, so far.
    Cuda,
    /// Threads of a ROCm device. Named only, so far.
    Rocm,
}

impl ThreadModelKind {
    const ALL: [Self; 5] = [Self::Pthreads, Self::Windows, Self::Argobots, Self::Cuda, Self::Rocm];
}

impl fmt::Display for ThreadModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pthreads => "pthreads",
            Self::Windows => "windows",
            Self::Argobots => "argobots",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
        })
    }
}

impl FromStr for ThreadModelKind {
    type Err = UnknownName;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == word);
        found.ok_or_else(|| UnknownName {
            what: "thread model",
            found: word.to_owned(),
            expected: "pthreads, windows, argobots, cuda or rocm",
        })
    }
}

/// A thread's number; what counts it says among which threads it is unique.
///
/// # Examples
/// ```
/// use hshm_memory::thread_model::ThreadId;
///
/// assert!(ThreadId::NULL.is_null());
/// assert!(!ThreadId::new(7).is_null());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ThreadId(u64);

impl ThreadId {
    /// No thread in particular.
    pub const NULL: Self = Self(0);

    /// The thread with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether it names no thread in particular.
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A name for a place in each thread's storage that holds a `*mut T`. Dropping it gives the name
/// back and forgets the pointers.
pub struct ThreadLocalKey<T> {
    os: os::Key,
    #[cfg(all(unix, feature = "argobots"))]
    user_level: argobots::Key,
    /// Each thread has a pointer of its own here; the key itself has none.
    pointers: PhantomData<fn(*mut T) -> *mut T>,
}

impl<T> ThreadLocalKey<T> {
    fn create(destructor: Option<Destructor>) -> Result<Self, ThreadModelError> {
        Ok(Self {
            os: os::Key::create(destructor)?,
            #[cfg(all(unix, feature = "argobots"))]
            user_level: argobots::Key::new(destructor),
            pointers: PhantomData,
        })
    }
}

impl<T> fmt::Debug for ThreadLocalKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ThreadLocalKey").field(&self.os).finish()
    }
}

/// What runs when a thread ends, whatever type it is for.
type Destructor = unsafe extern "C" fn(*mut c_void);

/// A destructor without its type.
fn untyped<T>(destructor: unsafe extern "C" fn(*mut T)) -> Destructor {
    // SAFETY: [ffi] the two differ in what their argument, a thin pointer, points to: Rust calls
    // such functions alike.
    unsafe { std::mem::transmute::<unsafe extern "C" fn(*mut T), Destructor>(destructor) }
}

/// Why a thread model could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThreadModelError {
    /// Thread-local storage could not be had.
    #[error("{what}: {source}; drop keys that nobody needs any more")]
    Storage {
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The library of a thread model is not there, or is another.
    #[error(
        "no library of user-level threads ({tried}): {why}; install Argobots 1.0 or later, or name its library in HSHM_ARGOBOTS_LIB"
    )]
    Library {
        /// Where it was looked for.
        tried: String,
        /// Why that is not it.
        why: String,
    },
    /// The library of user-level threads reported an error.
    #[error("{call} failed with Argobots' error {code}; abt.h says what it means")]
    Argobots {
        /// Which of its functions.
        call: &'static str,
        /// What it returned.
        code: i32,
    },
}
