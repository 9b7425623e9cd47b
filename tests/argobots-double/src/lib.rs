//! Stands in for the library of Argobots, user-level threads in C, where its thread model is tested:
//! what the model and its tests call of it, as its header documents it.
//!
//! Units move from stream to stream wherever they can. What would be undefined with the library
//! itself, such as a call by an unknown thread to a library that was built without checks, ends the
//! process here. `HSHM_ARGOBOTS_DOUBLE_CHECKS=0` makes it such a library.

#![allow(non_snake_case, reason = "the names are those of the library")]
#![allow(clippy::missing_safety_doc, reason = "they are documented where they come from")]

mod runtime;

use std::env;
use std::ffi::{c_char, c_int, c_void};
use std::process::abort;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::runtime::{
    Body, Destructor, Function, Pool, Stream, Unit, current, lock, next_id, set_current,
};

/// A handle of anything.
type Handle = *mut c_void;

const SUCCESS: c_int = 0;
const ERR_UNINITIALIZED: c_int = 1;
const ERR_MEM: c_int = 2;
const ERR_INV_XSTREAM: c_int = 4;
const ERR_INV_QUERY_KIND: c_int = 28;
const ERR_XSTREAM: c_int = 29;
const ERR_INV_KEY: c_int = 19;

const TYPE_THREAD: c_int = 0;
const TYPE_TASK: c_int = 1;
const TYPE_EXTERNAL: c_int = 3;

/// `ABT_INFO_QUERY_KIND_ENABLED_CHECK_ERROR`.
const QUERY_CHECKS: c_int = 4;

/// The null handles of a library that checks; the others' are 0.
const SCHED_CONFIG_NULL: usize = 4;
const POOL_NULL: usize = 5;
const THREAD_NULL: usize = 8;
const THREAD_ATTR_NULL: usize = 9;
const KEY_NULL: usize = 0xb;

static INITIALIZED: AtomicBool = AtomicBool::new(false);
static CHECKS: AtomicBool = AtomicBool::new(true);

fn checks() -> bool {
    CHECKS.load(Ordering::Relaxed)
}

fn null(checked: usize) -> Handle {
    if checks() { ptr::without_provenance_mut(checked) } else { ptr::null_mut() }
}

/// What a handle stands for, unless it is the null one. The null handle of the other kind of
/// library ends the process, as following it would.
fn target<T>(handle: Handle, checked_null: usize) -> Option<*mut T> {
    if handle == null(checked_null) {
        return None;
    }
    if handle.addr() < 4096 {
        abort();
    }
    Some(handle.cast())
}

fn ready() -> bool {
    let ready = INITIALIZED.load(Ordering::Acquire);
    if !ready && !checks() {
        abort();
    }
    ready
}

/// The calling unit; an error for an unknown thread, or the end where nothing is checked.
fn caller<'u>() -> Result<&'u Unit, c_int> {
    if !ready() {
        return Err(ERR_UNINITIALIZED);
    }
    match current() {
        Some(unit) => Ok(unit),
        None if checks() => Err(ERR_INV_XSTREAM),
        None => abort(),
    }
}

/// Stores what a function returns.
///
/// # Safety
/// `place` can be written.
unsafe fn give<T>(place: *mut T, value: T) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { place.write(value) };
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_init(_argc: c_int, _argv: *mut *mut c_char) -> c_int {
    let unchecked = env::var("HSHM_ARGOBOTS_DOUBLE_CHECKS").is_ok_and(|value| value == "0");
    CHECKS.store(!unchecked, Ordering::Relaxed);
    set_current(Arc::into_raw(Unit::new(Body::Primary, None, false)));
    INITIALIZED.store(true, Ordering::Release);
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn ABT_finalize() -> c_int {
    INITIALIZED.store(false, Ordering::Release);
    let primary = set_current(ptr::null());
    if primary.is_null() {
        abort();
    }
    // SAFETY: [owned] `ABT_init` made it so, and this thread called that.
    drop(unsafe { Arc::from_raw(primary) });
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn ABT_initialized() -> c_int {
    if INITIALIZED.load(Ordering::Acquire) { SUCCESS } else { ERR_UNINITIALIZED }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_info_query_config(kind: c_int, value: *mut c_void) -> c_int {
    match (ready(), kind) {
        (false, _) => ERR_UNINITIALIZED,
        // SAFETY: the caller's promise: it is an int for this question.
        (true, QUERY_CHECKS) => unsafe { give(value.cast(), c_int::from(checks())) },
        (true, _) => ERR_INV_QUERY_KIND,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_self_get_type(kind: *mut c_int) -> c_int {
    let (code, found) = match current() {
        _ if !ready() => (ERR_UNINITIALIZED, TYPE_EXTERNAL),
        None => (ERR_INV_XSTREAM, TYPE_EXTERNAL),
        Some(unit) if unit.is_task => (SUCCESS, TYPE_TASK),
        Some(_) => (SUCCESS, TYPE_THREAD),
    };
    // SAFETY: the caller's promise.
    unsafe { give(kind, found) };
    code
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_self_get_thread_id(id: *mut u64) -> c_int {
    match caller() {
        // SAFETY: the caller's promise.
        Ok(unit) => unsafe { give(id, unit.id) },
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn ABT_thread_yield() -> c_int {
    if !ready() {
        return ERR_UNINITIALIZED;
    }
    if let Some(unit) = current() {
        unit.suspend();
    }
    SUCCESS
}

struct Key {
    id: u64,
    destructor: Option<Destructor>,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_key_create(destructor: Option<Destructor>, key: *mut Handle) -> c_int {
    let made = Box::new(Key { id: next_id(), destructor });
    // SAFETY: the caller's promise.
    unsafe { give(key, Box::into_raw(made).cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_key_free(key: *mut Handle) -> c_int {
    // SAFETY: the caller's promise.
    let handle = unsafe { key.read() };
    let Some(made) = target::<Key>(handle, KEY_NULL) else { return ERR_INV_KEY };
    // SAFETY: [owned] it was made by `ABT_key_create`, and the caller gives it up.
    drop(unsafe { Box::from_raw(made) });
    // SAFETY: the caller's promise.
    unsafe { give(key, null(KEY_NULL)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_key_set(key: Handle, value: *mut c_void) -> c_int {
    let Some(key) = target::<Key>(key, KEY_NULL) else { return ERR_INV_KEY };
    let unit = match caller() {
        Ok(unit) => unit,
        Err(code) => return code,
    };
    // SAFETY: [owned] made by `ABT_key_create`, and not freed.
    let key = unsafe { &*key };
    lock(&unit.values).insert(key.id, (value, key.destructor));
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_key_get(key: Handle, value: *mut *mut c_void) -> c_int {
    let Some(key) = target::<Key>(key, KEY_NULL) else { return ERR_INV_KEY };
    let unit = match caller() {
        Ok(unit) => unit,
        Err(code) => return code,
    };
    // SAFETY: [owned] made by `ABT_key_create`, and not freed.
    let id = unsafe { &*key }.id;
    let found = lock(&unit.values).get(&id).map_or(ptr::null_mut(), |&(value, _)| value);
    // SAFETY: the caller's promise.
    unsafe { give(value, found) }
}

/// Of all kinds of pools there is one: first in, first out, for any stream.
#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_pool_create_basic(
    _kind: c_int,
    _access: c_int,
    _automatic: c_int,
    pool: *mut Handle,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { give(pool, Arc::into_raw(Arc::new(Pool::default())).cast_mut().cast()) }
}

/// The pool of a handle, which keeps it.
fn pool_of(handle: Handle) -> Option<Arc<Pool>> {
    let pool = target::<Pool>(handle, POOL_NULL)?;
    // SAFETY: [owned] made by `ABT_pool_create_basic`, and never freed.
    unsafe { Arc::increment_strong_count(pool) };
    // SAFETY: [owned] one count was just added for this.
    Some(unsafe { Arc::from_raw(pool) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_xstream_create_basic(
    _scheduler: c_int,
    pools: c_int,
    pool: *mut Handle,
    config: Handle,
    stream: *mut Handle,
) -> c_int {
    if !ready() {
        return ERR_UNINITIALIZED;
    }
    if pools != 1 || target::<c_void>(config, SCHED_CONFIG_NULL).is_some() {
        return ERR_XSTREAM;
    }
    // SAFETY: the caller's promise: there is one.
    let Some(pool) = pool_of(unsafe { pool.read() }) else { return ERR_XSTREAM };
    let made = Box::new(Some(Stream::start(pool)));
    // SAFETY: the caller's promise.
    unsafe { give(stream, Box::into_raw(made).cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_xstream_join(stream: Handle) -> c_int {
    let Some(stream) = target::<Option<Stream>>(stream, 1) else { return ERR_INV_XSTREAM };
    // SAFETY: [owned] made by `ABT_xstream_create_basic`; one thread joins it.
    let stream = unsafe { &mut *stream };
    if stream.take().is_none_or(Stream::join) { SUCCESS } else { ERR_XSTREAM }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_xstream_free(stream: *mut Handle) -> c_int {
    // SAFETY: the caller's promise.
    let handle = unsafe { stream.read() };
    // SAFETY: the caller's promise.
    let code = unsafe { ABT_xstream_join(handle) };
    if code == SUCCESS {
        // SAFETY: [owned] made by `ABT_xstream_create_basic`, and the caller gives it up.
        drop(unsafe { Box::from_raw(handle.cast::<Option<Stream>>()) });
        // SAFETY: the caller's promise.
        return unsafe { give(stream, null(1)) };
    }
    code
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_thread_attr_create(attribute: *mut Handle) -> c_int {
    let made = Box::new(AtomicU64::new(DEFAULT_STACK_BYTES as u64));
    // SAFETY: the caller's promise.
    unsafe { give(attribute, Box::into_raw(made).cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_thread_attr_set_stacksize(attribute: Handle, bytes: usize) -> c_int {
    let Some(attribute) = target::<AtomicU64>(attribute, THREAD_ATTR_NULL) else { abort() };
    // SAFETY: [owned] made by `ABT_thread_attr_create`.
    unsafe { &*attribute }.store(bytes as u64, Ordering::Relaxed);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_thread_attr_free(attribute: *mut Handle) -> c_int {
    // SAFETY: the caller's promise.
    let handle = unsafe { attribute.read() };
    let Some(made) = target::<AtomicU64>(handle, THREAD_ATTR_NULL) else { abort() };
    // SAFETY: [owned] made by `ABT_thread_attr_create`, and the caller gives it up.
    drop(unsafe { Box::from_raw(made) });
    // SAFETY: the caller's promise.
    unsafe { give(attribute, null(THREAD_ATTR_NULL)) }
}

/// A stack if none is asked for.
const DEFAULT_STACK_BYTES: usize = 16 << 10;

/// Has a unit run, and gives its handle to whoever asks for it.
///
/// # Safety
/// `place` is null or can be written.
unsafe fn launch(pool: &Pool, unit: Arc<Unit>, place: *mut Handle) -> c_int {
    if !place.is_null() {
        // SAFETY: the caller's promise.
        unsafe { give(place, Arc::into_raw(Arc::clone(&unit)).cast_mut().cast()) };
    }
    pool.push(unit);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_thread_create(
    pool: Handle,
    function: Function,
    argument: *mut c_void,
    attribute: Handle,
    thread: *mut Handle,
) -> c_int {
    let Some(pool) = pool_of(pool) else { abort() };
    let stack_bytes = match target::<AtomicU64>(attribute, THREAD_ATTR_NULL) {
        // SAFETY: [owned] made by `ABT_thread_attr_create`.
        Some(bytes) => unsafe { &*bytes }.load(Ordering::Relaxed),
        None => DEFAULT_STACK_BYTES as u64,
    };
    let unit = Unit::new(Body::Ended, Some(Arc::clone(&pool)), thread.is_null());
    let stack_bytes = usize::try_from(stack_bytes).unwrap_or(DEFAULT_STACK_BYTES);
    // SAFETY: the caller's promise.
    if unsafe { unit.start(function, argument, stack_bytes) }.is_err() {
        return ERR_MEM;
    }
    // SAFETY: the caller's promise.
    unsafe { launch(&pool, unit, thread) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_task_create(
    pool: Handle,
    function: Function,
    argument: *mut c_void,
    task: *mut Handle,
) -> c_int {
    let Some(pool) = pool_of(pool) else { abort() };
    let body = Body::Task(function, argument);
    let unit = Unit::new(body, Some(Arc::clone(&pool)), task.is_null());
    // SAFETY: the caller's promise.
    unsafe { launch(&pool, unit, task) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_thread_join(thread: Handle) -> c_int {
    let Some(unit) = target::<Unit>(thread, THREAD_NULL) else { abort() };
    // SAFETY: [owned] its handle holds it.
    let unit = unsafe { &*unit };
    while !unit.done.load(Ordering::Acquire) {
        match current() {
            Some(caller) => caller.suspend(),
            None => std::thread::yield_now(),
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ABT_thread_free(thread: *mut Handle) -> c_int {
    // SAFETY: the caller's promise.
    let handle = unsafe { thread.read() };
    // SAFETY: the caller's promise.
    unsafe { ABT_thread_join(handle) };
    // SAFETY: [owned] the handle holds it, and the caller gives that up.
    let unit = unsafe { Arc::from_raw(handle.cast::<Unit>().cast_const()) };
    unit.destroy_values();
    // SAFETY: the caller's promise.
    unsafe { give(thread, null(THREAD_NULL)) }
}
