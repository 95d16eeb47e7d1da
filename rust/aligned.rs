//! Numbers that begin at a cache line: a vector load that crosses two lines takes twice as long.

use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE: usize = 64;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A vector of plain numbers that begins at a cache line.
#[derive(Clone)]
pub struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T> Default for Aligned<T> {
    fn default() -> Aligned<T> {
        Aligned { lines: Vec::new(), len: 0, of: PhantomData }
    }
}

impl<T: Pod> Aligned<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Aligned<T> {
        let mut out = Aligned::default();
        out.resize(len);
        out
    }

    /// Bytes that it holds on to.
    pub fn capacity(&self) -> usize {
        self.lines.capacity() * LINE
    }

    /// Changes the length; what is added is zero, memory is kept.
    pub fn resize(&mut self, len: usize) {
        let old = self.len.min(len);
        self.lines.resize((len * size_of::<T>()).div_ceil(LINE), Line::zeroed());
        self.len = len;
        self[old..].fill(T::zeroed());
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl<T: Pod + std::fmt::Debug> std::fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_a_line_and_fills_with_zeros() {
        let mut x = Aligned::<f32>::zeros(3);
        assert_eq!(x.as_ptr().addr() % LINE, 0);
        x.copy_from_slice(&[1.0, 2.0, 3.0]);
        x.resize(1);
        x.resize(40);
        assert_eq!((x[0], x[1], x[39], x.len()), (1.0, 0.0, 0.0, 40));
    }
}
