//! The one place where an error of the crate becomes a Python exception.

use crate::Error;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt, PyOSError, PyValueError};
use pyo3::prelude::*;

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
        match error {
            Error::Argument(_) => PyValueError::new_err(message),
            Error::State(_) => StoreError::new_err(message),
            Error::Format { .. } => FormatError::new_err(message),
            // OSError called with a number chooses its subclass: PermissionError, FileNotFoundError …
            Error::Io { path, action, source } => match source.raw_os_error() {
                Some(number) => PyOSError::new_err((number, format!("{action}: {}", system_message(&source)), path)),
                None => PyErr::from(std::io::Error::new(source.kind(), message)),
            },
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        }
    }
}

/// The system's text without the number, which `OSError` prints itself.
fn system_message(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
