//! The one place where an error of the crate becomes a Python exception.

use crate::Error;
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
            Error::State(_) => StoreError::new_err(message),
            Error::Format { .. } => FormatError::new_err(message),
            // OSError called with a number chooses its subclass: PermissionError, FileNotFoundError …
            Error::Io { path, action, source } => match errno(&source) {
                Some(number) => {
                    let says = format!("{action}: {}{advice}", system_message(&source));
                    PyOSError::new_err((number, says, path.into_os_string())) // a str: a Path prints as PosixPath('…')
                }
                None => PyOSError::new_err(message),
            },
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        }
    }
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
