//! Words of the Python interface → choices of the core.

use crate::index::CodeChoice;
use crate::search::Rerank;
use crate::store::{KeyType, ValueType};
use crate::{Error, Metric, Result};
use pyo3::prelude::*;

/// `code=` of `build`.
#[derive(FromPyObject)]
pub enum Code {
    /// "small" or "flat".
    Name(String),
    /// (m, bits).
    Quantiser((usize, usize)),
}

impl Code {
    /// The choice of the core.
    pub fn choice(code: Option<Code>) -> Result<CodeChoice> {
        let unknown = |found: String| {
            Error::Argument(format!(
                "code: expected None, \"small\", \"flat\" or (m, bits) with 4 or 8 bits, found {found}"
            ))
        };
        match code {
            None => Ok(CodeChoice::Auto),
            Some(Code::Name(name)) if name == "small" => Ok(CodeChoice::Small),
            Some(Code::Name(name)) if name == "flat" => Ok(CodeChoice::Flat),
            Some(Code::Name(name)) => Err(unknown(format!("{name:?}"))),
            Some(Code::Quantiser((m, bits @ (4 | 8)))) => Ok(CodeChoice::Pq { m, bits: bits as u8 }),
            Some(Code::Quantiser(other)) => Err(unknown(format!("{other:?}"))),
        }
    }
}

/// `metric=`.
pub fn metric(word: &str) -> Result<Metric> {
    choose("metric", word, &[("l2", Metric::L2), ("ip", Metric::Ip)])
}

/// `keep_keys=`.
pub fn key_type(word: &str) -> Result<KeyType> {
    choose("keep_keys", word, &[("float16", KeyType::Float16), ("float32", KeyType::Float32)])
}

/// `value_dtype=`.
pub fn value_type(word: &str) -> Result<ValueType> {
    choose("value_dtype", word, &[("uint32", ValueType::Uint32), ("uint64", ValueType::Uint64)])
}

/// `rerank=`.
pub fn rerank(word: Option<&str>) -> Result<Rerank> {
    match word {
        None => Ok(Rerank::Auto),
        Some(word) => choose("rerank", word, &[("none", Rerank::None), ("code", Rerank::Code), ("keys", Rerank::Keys)]),
    }
}

fn choose<T: Copy>(what: &str, word: &str, choices: &[(&str, T)]) -> Result<T> {
    choices.iter().find(|(name, _)| *name == word).map(|&(_, choice)| choice).ok_or_else(|| {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        Error::Argument(format!("{what}: expected {}, found {word:?}", names.join(" or ")))
    })
}
