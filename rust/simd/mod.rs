//! Kernels per instruction set: an [`Isa`] is chosen once, and owning its [`Kernels`] is the proof that they may run.

mod isa;

pub use isa::Isa;
