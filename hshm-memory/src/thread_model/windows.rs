//! The threads of Windows.

use std::cell::RefCell;
use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use windows_sys::Win32::System::Threading::{
    GetCurrentThreadId, TLS_OUT_OF_INDEXES, TlsAlloc, TlsFree, TlsGetValue, TlsSetValue,
};

use super::{
    Destructor, ThreadId, ThreadLocalKey, ThreadModel, ThreadModelError, ThreadModelKind, untyped,
};

/// The operating system's threads: a thread's storage is a slot of thread-local storage (`TlsAlloc`),
/// and its number is the one that the system's tools show.
///
/// # Examples
/// ```
/// use hshm_memory::thread_model::{ThreadModel, ThreadModelKind, Windows};
///
/// assert_eq!(Windows.kind(), ThreadModelKind::Windows);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Windows;

impl ThreadModel for Windows {
    fn kind(&self) -> ThreadModelKind {
        ThreadModelKind::Windows
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
    // SAFETY: [ffi] no argument, and the call always succeeds.
    u64::from(unsafe { GetCurrentThreadId() })
}

/// A slot that each thread has. Windows itself calls nobody for such a slot when a thread ends; for
/// the slots of fibers (`FlsAlloc`) it does, but also for every living thread when the slot is given
/// back. So each thread has a list of the keys with destructors that it set, and its end goes through
/// that.
#[derive(Debug)]
pub(super) struct Key(Arc<Slot>);

#[derive(Debug)]
struct Slot {
    index: u32,
    destructor: Option<Destructor>,
}

thread_local! {
    /// The keys with destructors under which this thread set something.
    static AT_END: RefCell<AtEnd> = const { RefCell::new(AtEnd(Vec::new())) };
}

struct AtEnd(Vec<Weak<Slot>>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        for slot in self.0.drain(..) {
            // Held until the destructor has run, so that the index does not become another key's.
            let Some(slot) = slot.upgrade() else { continue };
            let data = slot.get();
            if let Some(destructor) = slot.destructor.filter(|_| !data.is_null()) {
                // Setting what is set already cannot fail.
                let _ = slot.store(ptr::null_mut());
                // SAFETY: [owned] whoever gave the destructor promised that it can be called with
                // every pointer set, when the thread that set it ends: that is now.
                unsafe { destructor(data) };
            }
        }
    }
}

impl Key {
    pub(super) fn create(destructor: Option<Destructor>) -> Result<Self, ThreadModelError> {
        // SAFETY: [ffi] no argument; the result is checked.
        let index = unsafe { TlsAlloc() };
        if index == TLS_OUT_OF_INDEXES {
            return Err(error("cannot make a key of thread-local storage"));
        }
        Ok(Self(Arc::new(Slot { index, destructor })))
    }

    pub(super) fn get(&self) -> *mut c_void {
        self.0.get()
    }

    pub(super) fn set(&self, data: *mut c_void) -> Result<(), ThreadModelError> {
        if self.0.destructor.is_some() && !data.is_null() {
            self.remember()?;
        }
        self.0.store(data)
    }

    /// Has this thread's end call the destructor.
    fn remember(&self) -> Result<(), ThreadModelError> {
        let this = Arc::downgrade(&self.0);
        let remembered = AT_END.try_with(|keys| {
            // The list is lent out only while the thread ends, and the destructors run.
            let Ok(mut keys) = keys.try_borrow_mut() else { return false };
            if !keys.0.iter().any(|key| key.ptr_eq(&this)) {
                keys.0.retain(|key| key.strong_count() > 0);
                keys.0.push(this);
            }
            true
        });
        if matches!(remembered, Ok(true)) {
            return Ok(());
        }
        let source = io::Error::other("the thread is ending");
        Err(ThreadModelError::Storage { what: "cannot set thread-local storage", source })
    }
}

impl Slot {
    fn get(&self) -> *mut c_void {
        // SAFETY: [ffi] the index is allocated until this is dropped.
        unsafe { TlsGetValue(self.index) }
    }

    fn store(&self, data: *mut c_void) -> Result<(), ThreadModelError> {
        // SAFETY: [ffi] as in `get`; the pointer is only kept.
        let done = unsafe { TlsSetValue(self.index, data) };
        if done == 0 { Err(error("cannot set thread-local storage")) } else { Ok(()) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: [ffi] the index is allocated, and nobody has it any more.
        unsafe { TlsFree(self.index) };
    }
}

fn error(what: &'static str) -> ThreadModelError {
    ThreadModelError::Storage { what, source: io::Error::last_os_error() }
}
