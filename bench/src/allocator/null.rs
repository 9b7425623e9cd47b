//! No allocator: every block is the same one. What a workload costs with it is the harness's own
//! cost.

use std::arch::asm;

use super::{Heap, Setup, address_of, block_at};

pub(crate) struct Null {
    block: u64,
}

// SAFETY: not so: all blocks are one. No workload reads what it wrote to a block.
unsafe impl Heap for Null {
    fn create(_: &Setup<'_>) -> Result<Self, String> {
        let place: &'static mut [u64] = Box::leak(vec![0_u64; 1 << 17].into_boxed_slice());
        Ok(Self { block: block_at(place.as_mut_ptr().cast()) })
    }

    fn attach(setup: &Setup<'_>) -> Result<Self, String> {
        Self::create(setup)
    }

    /// No instruction; but the compiler must have the size ready, and cannot know the block.
    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        let mut block = self.block;
        // SAFETY: no instruction, no effect.
        unsafe { asm!("/* {0} {1} */", in(reg) bytes, inout(reg) block, options(nostack)) };
        block
    }

    #[inline(always)]
    fn address(&self, block: u64, _: usize) -> *mut u8 {
        address_of(block)
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: no instruction, no effect.
        unsafe { asm!("/* {0} */", in(reg) block, options(nostack)) };
    }

    #[inline(always)]
    fn import(&self, _: u64) -> u64 {
        self.block
    }
}
