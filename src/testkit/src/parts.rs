//! Where the built binary and the real servers and clients are.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// What `cargo xtask` built and installed.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The binary under test.
    pub bin: PathBuf,
    /// ONNX Runtime's shared library.
    pub onnx_library: PathBuf,
    /// A Python that has the client library.
    pub python: PathBuf,
    /// The S3 server.
    pub versitygw: PathBuf,
}

impl Parts {
    /// Reads the variables that `cargo xtask` sets.
    ///
    /// # Errors
    /// When one is absent or names nothing: a test without its parts has failed, it is not skipped.
    pub fn from_env() -> Result<Self> {
        Ok(Parts {
            bin: part("BERTH_BIN")?,
            onnx_library: part("BERTH_ONNX_LIBRARY")?,
            python: part("BERTH_PYTHON")?,
            versitygw: part("BERTH_VERSITYGW")?,
        })
    }
}

/// The file that `variable` names. Servers that few tests need are looked up when one is started.
pub(crate) fn part(variable: &str) -> Result<PathBuf> {
    let value = std::env::var_os(variable).with_context(|| format!("{variable} is not set: run through cargo xtask test"))?;
    let path = PathBuf::from(value);
    ensure!(path.is_file(), "{variable} is {}, which is no file: run through cargo xtask test", path.display());
    Ok(path)
}
