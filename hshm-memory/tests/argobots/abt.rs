//! As much of Argobots as an application of it calls, from the library that is tested.

use std::env;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use libloading::os::unix::{Library, Symbol};

type Handle = *mut c_void;
type Entry = unsafe extern "C" fn(*mut c_void);

/// What a unit is to do.
pub(crate) type Work<'w> = Box<dyn FnOnce() + Send + 'w>;

/// Enough for the tests, which the library's default of 16 KiB is not.
const STACK_BYTES: usize = 64 << 10;

/// The library, initialised by the thread that has this.
pub(crate) struct Argobots {
    library: Library,
    /// Whether its null handles are numbers of their own.
    checks: bool,
}

/// Streams that take their work from one pool.
pub(crate) struct Streams<'a> {
    argobots: &'a Argobots,
    pool: Handle,
    streams: Vec<Handle>,
}

/// A user-level thread that was started.
pub(crate) struct Thread<'a> {
    argobots: &'a Argobots,
    handle: Handle,
}

macro_rules! call {
    ($library:expr, $name:ident ( $($argument:expr => $type:ty),* )) => {{
        type Function = unsafe extern "C" fn($($type),*) -> c_int;
        let name = concat!(stringify!($name), "\0").as_bytes();
        // SAFETY: [ffi] the type is that of the function of this name in abt.h.
        let function = unsafe { $library.get::<Function>(name) }.unwrap();
        // SAFETY: [ffi] the arguments are what abt.h asks for.
        let code = unsafe { function($($argument),*) };
        assert_eq!(code, 0, stringify!($name));
    }};
}

impl Argobots {
    pub(crate) fn init() -> Self {
        // SAFETY: [ffi] the library's initialisers may run at any time.
        let library = unsafe { Library::new(env::var_os("HSHM_ARGOBOTS_LIB").unwrap()) }.unwrap();
        call!(library, ABT_init(0 => c_int, ptr::null_mut() => *mut *mut c_char));
        let mut checks = -1;
        // ABT_INFO_QUERY_KIND_ENABLED_CHECK_ERROR
        call!(library, ABT_info_query_config(4 => c_int, (&raw mut checks).cast() => *mut c_void));
        assert!(checks == 0 || checks == 1);
        if let Ok(wanted) = env::var("HSHM_ARGOBOTS_DOUBLE_CHECKS") {
            assert_eq!(wanted, checks.to_string());
        }
        Self { library, checks: checks == 1 }
    }

    pub(crate) fn finalize(self) {
        call!(self.library, ABT_finalize());
    }

    fn null(&self, checked: usize) -> Handle {
        ptr::without_provenance_mut(if self.checks { checked } else { 0 })
    }

    pub(crate) fn streams(&self, count: usize) -> Streams<'_> {
        let mut pool = ptr::null_mut();
        // ABT_POOL_FIFO, ABT_POOL_ACCESS_MPMC, freed with its streams.
        call!(self.library, ABT_pool_create_basic(
            0 => c_int, 4 => c_int, 1 => c_int, &raw mut pool => *mut Handle));
        let start = |_| {
            let (mut stream, mut pools) = (ptr::null_mut(), [pool]);
            // ABT_SCHED_DEFAULT, and ABT_SCHED_CONFIG_NULL.
            call!(self.library, ABT_xstream_create_basic(
                0 => c_int, 1 => c_int, pools.as_mut_ptr() => *mut Handle,
                self.null(4) => Handle, &raw mut stream => *mut Handle));
            stream
        };
        Streams { argobots: self, pool, streams: (0..count).map(start).collect() }
    }

    /// Without the thread model, as an application would.
    #[inline(always)]
    pub(crate) fn yielder(&self) -> impl Fn() + Copy + Send + Sync + 'static {
        // SAFETY: [ffi] the type is that of the function of this name in abt.h.
        let function: Symbol<unsafe extern "C" fn() -> c_int> =
            unsafe { self.library.get(b"ABT_thread_yield\0") }.unwrap();
        let function = *function;
        move || {
            // SAFETY: [ffi] it may be called by any thread; the library stays.
            let code = unsafe { function() };
            assert_eq!(code, 0);
        }
    }
}

unsafe extern "C" fn work(work: *mut c_void) {
    // SAFETY: [owned] it is a boxed `Work`, made for this one call.
    let work = unsafe { Box::from_raw(work.cast::<Work<'_>>()) };
    // A panic ends the process here, with its message.
    work();
}

impl<'a> Streams<'a> {
    /// Starts a user-level thread.
    ///
    /// # Safety
    /// It ends before what it borrows.
    pub(crate) unsafe fn start(&self, what: Work<'_>) -> Thread<'a> {
        let library = &self.argobots.library;
        let mut attribute = ptr::null_mut();
        call!(library, ABT_thread_attr_create(&raw mut attribute => *mut Handle));
        call!(library, ABT_thread_attr_set_stacksize(attribute => Handle, STACK_BYTES => usize));
        let mut handle = ptr::null_mut();
        call!(library, ABT_thread_create(
            self.pool => Handle, work => Entry,
            Box::into_raw(Box::new(what)).cast() => *mut c_void,
            attribute => Handle, &raw mut handle => *mut Handle));
        call!(library, ABT_thread_attr_free(&raw mut attribute => *mut Handle));
        Thread { argobots: self.argobots, handle }
    }

    /// Runs all of it, each in a user-level thread, and waits for them.
    pub(crate) fn run<'w>(&self, works: impl IntoIterator<Item = Work<'w>>) {
        // SAFETY: [owned] all are joined here.
        let start = |work| unsafe { self.start(work) };
        let threads: Vec<_> = works.into_iter().map(start).collect();
        threads.into_iter().for_each(Thread::free);
    }

    /// Runs all of it, each in a tasklet, and waits for them.
    pub(crate) fn run_tasklets<'w>(&self, works: impl IntoIterator<Item = Work<'w>>) {
        let library = &self.argobots.library;
        let start = |what: Work<'w>| {
            let mut handle = ptr::null_mut();
            call!(library, ABT_task_create(
                self.pool => Handle, work => Entry,
                Box::into_raw(Box::new(what)).cast() => *mut c_void,
                &raw mut handle => *mut Handle));
            Thread { argobots: self.argobots, handle }
        };
        let tasklets: Vec<_> = works.into_iter().map(start).collect();
        tasklets.into_iter().for_each(Thread::free);
    }

    /// Ends the streams, once they have nothing to do.
    pub(crate) fn free(self) {
        for mut stream in self.streams {
            call!(self.argobots.library, ABT_xstream_join(stream => Handle));
            call!(self.argobots.library, ABT_xstream_free(&raw mut stream => *mut Handle));
        }
    }
}

impl Thread<'_> {
    /// Waits until it has ended.
    pub(crate) fn join(&self) {
        call!(self.argobots.library, ABT_thread_join(self.handle => Handle));
    }

    /// The same, and frees it.
    pub(crate) fn free(mut self) {
        call!(self.argobots.library, ABT_thread_free(&raw mut self.handle => *mut Handle));
    }
}
