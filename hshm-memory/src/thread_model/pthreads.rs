//! The threads of POSIX systems.

use std::ffi::c_void;
use std::io;
use std::time::Duration;

use super::{
    Destructor, ThreadId, ThreadLocalKey, ThreadModel, ThreadModelError, ThreadModelKind, untyped,
};

/// The operating system's threads: a thread's storage is POSIX thread-specific data, and its number
/// is the one that the system's tools show.
///
/// # Examples
/// ```
/// use hshm_memory::thread_model::{Pthreads, ThreadModel, ThreadModelKind};
///
/// assert_eq!(Pthreads.kind(), ThreadModelKind::Pthreads);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Pthreads;

impl ThreadModel for Pthreads {
    fn kind(&self) -> ThreadModelKind {
        ThreadModelKind::Pthreads
    }

    fn sleep_for_us(&self, microseconds: u64) {
        std::thread::sleep(Duration::from_micros(microseconds));
    }

    fn yield_now(&self) {
        std::thread::yield_now();
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
        key.os.get().cast()
    }

    fn set_tls<T>(&self, key: &ThreadLocalKey<T>, data: *mut T) -> Result<(), ThreadModelError> {
        key.os.set(data.cast())
    }

    fn get_tid(&self) -> ThreadId {
        ThreadId::new(thread_number())
    }
}

/// The system's number of the calling thread, never 0.
pub(super) fn thread_number() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // SAFETY: [ffi] no argument, and the call always succeeds.
        let number = unsafe { libc::gettid() };
        u64::from(number.cast_unsigned())
    }
    #[cfg(any(target_os = "macos", target_os = "ios"))]
    {
        let mut number = 0;
        // SAFETY: [ffi] 0 is the calling thread, and the number is stored in a local.
        unsafe { libc::pthread_threadid_np(0, &raw mut number) };
        number
    }
    #[cfg(not(any(
        target_os = "linux",
        target_os = "android",
        target_os = "macos",
        target_os = "ios"
    )))]
    {
        // SAFETY: [ffi] no argument, and the call always succeeds. Its result is unique among the
        // living, if nothing to show to people.
        (unsafe { libc::pthread_self() }) as u64
    }
}

/// A key of POSIX thread-specific data.
#[derive(Debug)]
pub(super) struct Key(libc::pthread_key_t);

impl Key {
    pub(super) fn create(destructor: Option<Destructor>) -> Result<Self, ThreadModelError> {
        let mut key = 0;
        // SAFETY: [ffi] the key is stored in a local; whoever gave the destructor promised that it
        // can be called with what is set.
        let result = unsafe { libc::pthread_key_create(&raw mut key, destructor) };
        done(result, "cannot make a key of thread-local storage").map(|()| Self(key))
    }

    pub(super) fn get(&self) -> *mut c_void {
        // SAFETY: [ffi] the key stands until it is dropped.
        unsafe { libc::pthread_getspecific(self.0) }
    }

    pub(super) fn set(&self, data: *mut c_void) -> Result<(), ThreadModelError> {
        // SAFETY: [ffi] as in `get`; the pointer is only kept.
        let result = unsafe { libc::pthread_setspecific(self.0, data) };
        done(result, "cannot set thread-local storage")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: [ffi] the key stands, and nobody has it any more.
        unsafe { libc::pthread_key_delete(self.0) };
    }
}

fn done(result: libc::c_int, what: &'static str) -> Result<(), ThreadModelError> {
    match result {
        0 => Ok(()),
        code => Err(ThreadModelError::Storage { what, source: io::Error::from_raw_os_error(code) }),
    }
}
