//! The one place where an error of the crate becomes a Python exception.

use crate::Error;
use crate::error::Why;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt, PyOSError, PyValueError};
use pyo3::prelude::*;
use std::io::ErrorKind;

create_exception!(
    knnlm,
    StoreError,
    PyException,
    "The store is not in a state that allows the operation: keys not kept, closed, a second writer."
);
create_exception!(
    knnlm,
    FormatError,
    PyValueError,
    "A file of the store is damaged, truncated, of a newer format or not ours."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let message = error.to_string();
        let advice = error.advice();
        match error {
            Error::Argument(_) => PyValueError::new_err(message),
            Error::State { why, .. } => store_error(why, message),
            Error::Format { .. } => FormatError::new_err(message),
            Error::Damaged { .. } => {
                let text = format!("{message}; in Python: compact(drop_damaged=True)");
                telling(FormatError::new_err(text), "damaged".into(), message)
            }
            // OSError called with a number chooses its subclass: PermissionError, FileNotFoundError …
            Error::Io { path, action, source } => match errno(&source) {
                Some(number) => {
                    let says = format!("{}: {}{advice}", action.words(), system_message(&source));
                    PyOSError::new_err((number, says, path.into_os_string())) // a str: a Path prints as PosixPath('…')
                }
                None => PyOSError::new_err(message),
            },
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        }
    }
}

/// A `StoreError` that says in keywords of Python what to do, and bears what a command line needs to say it in its own:
/// `why`, a word, and `message`, without the advice.
fn store_error(why: Why, message: String) -> PyErr {
    telling(StoreError::new_err(format!("{message}{}", keywords(why))), word(why), message)
}

fn telling(error: PyErr, why: String, message: String) -> PyErr {
    Python::attach(|py| {
        let value = error.value(py);
        // What cannot be told in addition is in the text already.
        let _ = value.setattr("why", why).and_then(|()| value.setattr("message", message));
    });
    error
}

/// What to do, in keywords of Python.
fn keywords(why: Why) -> &'static str {
    match why {
        Why::KeysNotKept => "; create it with keep_keys=\"float16\" or \"float32\"",
        Why::NotCalibrated | Why::Outgrown => "; in Python: build(retrain=True)",
        Why::NoSecondLevel => "; in Python: build(code=None, retrain=True)",
        Why::Exists => "; in Python: overwrite=True replaces a store",
        Why::Failed => "; in Python: discard()",
        _ => "",
    }
}

/// `KeysNotKept` → `keys_not_kept`.
fn word(why: Why) -> String {
    let mut word = String::new();
    for (i, c) in format!("{why:?}").chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            word.push('_');
        }
        word.extend(c.to_lowercase());
    }
    word
}

/// The system's number; for an error that the core made itself, the one that POSIX and Windows' C library agree on.
fn errno(error: &std::io::Error) -> Option<i32> {
    error.raw_os_error().or(match error.kind() {
        ErrorKind::NotFound => Some(2),
        ErrorKind::PermissionDenied => Some(13),
        ErrorKind::AlreadyExists => Some(17),
        ErrorKind::StorageFull => Some(28),
        _ => None,
    })
}

/// The system's text without the number, which `OSError` prints itself.
fn system_message(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
