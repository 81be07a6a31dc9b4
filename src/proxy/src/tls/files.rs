//! What TLS is told, and what its files hold.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::credentials::Credentials;

/// A file, and the setting that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFile {
    /// What a user would change: a flag, a variable, a key of a file.
    pub setting: String,
    /// The file.
    pub path: PathBuf,
}

impl TlsFile {
    /// A line that tells what is wrong with the file.
    pub(crate) fn fault(&self, what: impl fmt::Display) -> String {
        format!("{}: {}: {what}", self.setting, self.path.display())
    }
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    #[default]
    None,
    /// They are asked; whoever shows one must be trusted.
    Optional,
    /// Without one that is trusted nobody is served.
    Require,
}

impl FromStr for ClientAuth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "none" => Ok(ClientAuth::None),
            "optional" => Ok(ClientAuth::Optional),
            "require" => Ok(ClientAuth::Require),
            _ => Err(format!("{text:?} is none of NONE, OPTIONAL and REQUIRE")),
        }
    }
}

/// What decrypts the private key, and the setting that says so.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase {
    setting: String,
    text: String,
}

impl Passphrase {
    /// `text` as `setting` gave it.
    #[must_use]
    pub fn new(setting: impl Into<String>, text: impl Into<String>) -> Self {
        Passphrase { setting: setting.into(), text: text.into() }
    }

    pub(crate) fn setting(&self) -> &str {
        &self.setting
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passphrase").field("setting", &self.setting).finish_non_exhaustive()
    }
}

/// What the inference ports are told about TLS. [`crate::Tls::open`] checks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The server's certificate and those that lead to its authority, PEM, its own first.
    pub certificate: TlsFile,
    /// Its private key, PEM: PKCS#8, encrypted or not, PKCS#1 or SEC1.
    pub key: TlsFile,
    /// What decrypts an encrypted key.
    pub passphrase: Option<Passphrase>,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
    /// Which ones are trusted, PEM: authorities, or clients' own certificates.
    pub trust: Vec<TlsFile>,
}

impl TlsSettings {
    /// Every fault of these settings and of what their files hold now. Empty when there is none.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        Content::read(self).and_then(|content| Credentials::of(self, &content)).err().unwrap_or_default()
    }
}

/// No file of this kind is longer; whoever names another one by mistake is told so.
const LONGEST: u64 = 4 << 20;

/// What the files hold. Two that are equal say the same. There is no `Debug`: it holds the key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
    /// In the order of the settings; none is read while clients are not asked.
    pub(super) trust: Vec<Vec<u8>>,
}

impl Content {
    /// Reads all of them.
    ///
    /// # Errors
    /// A line for each that cannot be read.
    pub(super) fn read(settings: &TlsSettings) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let mut read = |file: &TlsFile| {
            whole(&file.path).unwrap_or_else(|what| {
                faults.push(file.fault(what));
                Vec::new()
            })
        };
        let (certificate, key) = (read(&settings.certificate), read(&settings.key));
        let asks = settings.client_auth != ClientAuth::None;
        let trust = settings.trust.iter().filter(|_| asks).map(read).collect();
        if faults.is_empty() { Ok(Content { certificate, key, trust }) } else { Err(faults) }
    }
}

fn whole(path: &Path) -> Result<Vec<u8>, String> {
    // Looked at before it is opened: opening a pipe waits for whoever writes to it.
    let about = std::fs::metadata(path).map_err(|fault| fault.to_string())?;
    if !about.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)).map_err(|fault| fault.to_string())?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("has more than {} MiB: is it the right file?", LONGEST >> 20));
    }
    Ok(bytes)
}
