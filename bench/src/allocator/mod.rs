//! The allocators, each behind the same trait, in the way in which its users call it.
//!
//! Workloads are generic over [`Heap`], so that what is inlined for a user is inlined here.

#[cfg(boost)]
mod boost;
mod glibc;
mod hshm;
#[cfg(feature = "iceoryx2")]
mod iceoryx2;
#[cfg(feature = "jemalloc")]
mod jemalloc;
#[cfg(feature = "mimalloc")]
mod mimalloc;
mod null;
#[cfg(feature = "rpmalloc")]
mod rpmalloc;
#[cfg(feature = "snmalloc")]
mod snmalloc;
mod tcmalloc;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::case::{Case, Order, Workload};
use crate::system::die;

/// An allocator as the workloads see it: blocks are words, which are addresses for private
/// allocators and may be offsets for shared ones.
///
/// # Safety
/// A block that `allocate` returned is the caller's alone until freed, `address` gives writable
/// memory for it, and what `export` gives names the same block in every process that attached.
pub(crate) unsafe trait Heap: Sync + Sized {
    /// Makes the allocator ready, and the segment, if it has one.
    fn create(setup: &Setup<'_>) -> Result<Self, String>;

    /// Attaches to the segment that another process created.
    fn attach(setup: &Setup<'_>) -> Result<Self, String> {
        Err(format!("{:?} is private", setup.case.workload))
    }

    /// What each thread must do before it uses the allocator.
    fn begin_thread(&self) {}

    /// And at its end.
    fn end_thread(&self) {}

    /// A block of `bytes` bytes. The measurement ends if there is none.
    fn allocate(&self, bytes: usize) -> u64;

    /// The same, and where its bytes are in this process.
    #[inline(always)]
    fn allocate_mapped(&self, bytes: usize) -> (u64, *mut u8) {
        let block = self.allocate(bytes);
        (block, self.address(block, bytes))
    }

    /// Where the block's bytes are in this process, aligned to 16.
    fn address(&self, block: u64, bytes: usize) -> *mut u8;

    /// # Safety
    /// The block is allocated, and nobody uses it any more.
    unsafe fn free(&self, block: u64);

    /// The block as another process can use it.
    #[inline(always)]
    fn export(&self, block: u64) -> u64 {
        block
    }

    /// A block that another process exported.
    #[inline(always)]
    fn import(&self, block: u64) -> u64 {
        block
    }

    /// Has the dead workers' memory recovered: how many milliseconds that took is the caller's to
    /// measure. Returns how many were recovered.
    fn recover(&self) -> Result<usize, String> {
        Err("it recovers nothing".to_owned())
    }
}

/// What an allocator is created for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    /// The name of its segment, and the beginning of the name of any other shared file.
    pub(crate) segment: &'a str,
    pub(crate) case: &'a Case,
}

impl Setup<'_> {
    /// How long a segment must be for the case, with plenty to spare. It costs nothing before it is
    /// touched.
    pub(crate) fn segment_bytes(&self) -> usize {
        if self.case.workload == Workload::Recover { 3 << 30 } else { 2 << 30 }
    }
}

/// An allocator by name.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Name {
    /// No allocator: the harness's own cost.
    Null,
    /// Our ThreadLocalAllocator.
    Hshm,
    /// Microsoft's mimalloc.
    Mimalloc,
    /// Microsoft's snmalloc.
    Snmalloc,
    /// jemalloc.
    Jemalloc,
    /// rpmalloc.
    Rpmalloc,
    /// Google's tcmalloc, the minimal one of gperftools.
    Tcmalloc,
    /// The C library's malloc.
    Glibc,
    /// Boost.Interprocess.
    Boost,
    /// iceoryx2's pool of blocks of one size.
    Iceoryx2,
}

/// Who can use what an allocator gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Nobody: there is no allocator.
    Harness,
    /// The process that allocated it.
    Private,
    /// Every process that attached.
    Shared,
}

impl Name {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Null => Kind::Harness,
            Self::Hshm | Self::Boost | Self::Iceoryx2 => Kind::Shared,
            Self::Mimalloc
            | Self::Snmalloc
            | Self::Jemalloc
            | Self::Rpmalloc
            | Self::Tcmalloc
            | Self::Glibc => Kind::Private,
        }
    }

    /// How its fast path is reached.
    pub(crate) fn called(self) -> &'static str {
        match self {
            Self::Null | Self::Hshm => "inlined",
            Self::Iceoryx2 => "Rust, inlined as far as the compiler likes",
            Self::Boost => "template inlined in a C function, which is called",
            Self::Mimalloc | Self::Snmalloc | Self::Jemalloc | Self::Rpmalloc => {
                "C function, linked statically, called"
            }
            Self::Glibc => "C function in a shared library, called",
            Self::Tcmalloc => "C function in a loaded library, called through a pointer",
        }
    }

    /// Its version, or why it cannot be measured here.
    pub(crate) fn version(self) -> Result<String, String> {
        match self {
            Self::Null => Ok("none".to_owned()),
            Self::Hshm => Ok(env!("CARGO_PKG_VERSION").to_owned()),
            #[cfg(feature = "mimalloc")]
            Self::Mimalloc => Ok(mimalloc::version()),
            #[cfg(not(feature = "mimalloc"))]
            Self::Mimalloc => Err("built without it: run with --features peers".to_owned()),
            #[cfg(feature = "snmalloc")]
            Self::Snmalloc => Ok(format!("snmalloc-sys {}", env!("VERSION_SNMALLOC_SYS"))),
            #[cfg(not(feature = "snmalloc"))]
            Self::Snmalloc => Err("built without it: run with --features peers".to_owned()),
            #[cfg(feature = "jemalloc")]
            Self::Jemalloc => {
                Ok(format!("tikv-jemalloc-sys {}", env!("VERSION_TIKV_JEMALLOC_SYS")))
            }
            #[cfg(not(feature = "jemalloc"))]
            Self::Jemalloc => Err("built without it: run with --features peers".to_owned()),
            #[cfg(feature = "rpmalloc")]
            Self::Rpmalloc => Ok(format!("rpmalloc-sys {}", env!("VERSION_RPMALLOC_SYS"))),
            #[cfg(not(feature = "rpmalloc"))]
            Self::Rpmalloc => Err("built without it: run with --features peers".to_owned()),
            Self::Tcmalloc => tcmalloc::version(),
            Self::Glibc => Ok(glibc::version()),
            #[cfg(boost)]
            Self::Boost => Ok(boost::version()),
            #[cfg(not(boost))]
            Self::Boost => Err(env!("NO_BOOST").to_owned()),
            #[cfg(feature = "iceoryx2")]
            Self::Iceoryx2 => Ok(format!("iceoryx2-cal {}", env!("VERSION_ICEORYX2_CAL"))),
            #[cfg(not(feature = "iceoryx2"))]
            Self::Iceoryx2 => Err("built without it: run with --features peers".to_owned()),
        }
    }

    /// Whether the case says anything about it.
    pub(crate) fn is_concerned(self, case: &Case) -> bool {
        use Workload::{Attach, Control, Large, Pages, Recover};
        match self.kind() {
            Kind::Harness => !matches!(case.workload, Pages | Large | Attach | Recover | Control),
            Kind::Private => !case.needs_shared(),
            Kind::Shared => self == Self::Hshm || case.order != Order::Daemon,
        }
    }

    /// Why it cannot do the case, if it cannot.
    pub(crate) fn refuses(self, case: &Case) -> Option<&'static str> {
        use Workload::{Large, Pages, Recover};
        if self == Self::Iceoryx2 && matches!(case.workload, Pages | Large | Recover) {
            return Some("its blocks have one size");
        }
        if self == Self::Boost && case.workload == Recover {
            return Some("a dead worker's mutex stays locked");
        }
        None
    }
}

/// Work to be done with some allocator.
pub(crate) trait Visit {
    type Output;

    fn visit<H: Heap>(self) -> Self::Output;
}

/// Does `work` with the allocator `name`, compiled for it.
pub(crate) fn dispatch<V: Visit>(name: Name, work: V) -> V::Output {
    match name {
        Name::Null => work.visit::<null::Null>(),
        Name::Hshm => work.visit::<hshm::Hshm>(),
        #[cfg(feature = "mimalloc")]
        Name::Mimalloc => work.visit::<mimalloc::Mimalloc>(),
        #[cfg(feature = "snmalloc")]
        Name::Snmalloc => work.visit::<snmalloc::Snmalloc>(),
        #[cfg(feature = "jemalloc")]
        Name::Jemalloc => work.visit::<jemalloc::Jemalloc>(),
        #[cfg(feature = "rpmalloc")]
        Name::Rpmalloc => work.visit::<rpmalloc::Rpmalloc>(),
        Name::Tcmalloc => work.visit::<tcmalloc::Tcmalloc>(),
        Name::Glibc => work.visit::<glibc::Glibc>(),
        #[cfg(boost)]
        Name::Boost => work.visit::<boost::Boost>(),
        #[cfg(feature = "iceoryx2")]
        Name::Iceoryx2 => work.visit::<iceoryx2::Iceoryx2>(),
        #[allow(unreachable_patterns, reason = "reached by those that were left out")]
        absent => die(absent.version().err().unwrap_or_default()),
    }
}

/// The word for an address that an allocator returned; the measurement ends if it is null.
#[inline(always)]
fn block_at(address: *mut libc::c_void) -> u64 {
    if address.is_null() {
        out_of_memory();
    }
    address.expose_provenance() as u64
}

/// The address that [`block_at`] made a word of.
#[inline(always)]
fn address_of<T>(block: u64) -> *mut T {
    #[allow(clippy::cast_possible_truncation, reason = "it was an address")]
    let address = block as usize;
    std::ptr::with_exposed_provenance_mut(address)
}

#[cold]
#[inline(never)]
fn out_of_memory() -> ! {
    die("out of memory")
}
