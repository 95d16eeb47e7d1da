//! Asks the memory for data that will be read soon: random rows of a mapped file cost a cache miss each otherwise.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0 as NEAR, _MM_HINT_T1 as FAR};
#[cfg(not(target_arch = "x86_64"))]
const NEAR: i32 = 0;
#[cfg(not(target_arch = "x86_64"))]
const FAR: i32 = 1;

/// Asks for the cache lines of `data`. Changes no result; does nothing where the CPU has no such instruction.
#[inline(always)]
pub fn prefetch<T>(data: &[T]) {
    hint::<NEAR, T>(data);
}

/// The same, no nearer than the level-2 cache: for data that will be read later.
#[inline(always)]
pub fn prefetch_far<T>(data: &[T]) {
    hint::<FAR, T>(data);
}

#[inline(always)]
fn hint<const HINT: i32, T>(data: &[T]) {
    let start = data.as_ptr().cast::<i8>();
    for line in (0..size_of_val(data)).step_by(64) {
        let line = start.wrapping_add(line);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults; x86-64 has it.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<HINT>(line)
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}
