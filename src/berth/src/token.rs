//! The token of the resource API: where it comes from, and that a new one in its file counts without a restart.
//!
//! A token is never part of a message, a log line or a `Debug` output: faults name the file or variable and the reason.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use berth_api::Token;
use berth_telemetry::Clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::following::{self, News};
use crate::serve::shown;

/// Bits of a mode that let others than the owner read or change a file.
const OTHERS: u32 = 0o077;
/// No token is longer; whoever names another file by mistake is told so.
const LONGEST: u64 = 4096;

/// A token and whence it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiToken {
    /// What it is now.
    pub(crate) token: Token,
    /// The file that it was read from; `None` where a variable held it.
    pub(crate) file: Option<PathBuf>,
}

/// A token as a file holds it, and the permissions of that file.
struct Content {
    token: Token,
    mode: u32,
}

/// Reads the token in a file.
///
/// # Errors
/// The file and what is wrong with it.
pub(crate) fn read(path: &Path) -> Result<Token, String> {
    content(path).map(|content| content.token)
}

fn content(path: &Path) -> Result<Content, String> {
    let told = |why: &dyn std::fmt::Display| format!("{}: {why}", shown(path));
    // Looked at before it is opened: opening a pipe waits for whoever writes to it.
    let metadata = std::fs::metadata(path).map_err(|fault| told(&fault))?;
    if !metadata.is_file() {
        return Err(told(&"is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)).map_err(|fault| told(&fault))?;
    if bytes.len() as u64 > LONGEST {
        return Err(told(&format!("has more than {LONGEST} bytes: is it the file with the token?")));
    }
    let text = std::str::from_utf8(&bytes).unwrap_or("\0");
    if text.trim().is_empty() {
        return Err(told(&"is empty"));
    }
    let token = Token::new(text).map_err(|fault| told(&fault))?;
    Ok(Content { token, mode: metadata.permissions().mode() & 0o777 })
}

/// Says in the log when others may read the file: where that is how it is mounted, it is no fault.
pub(crate) fn warn_if_open(path: &Path) {
    if let Ok(Content { mode, .. }) = content(path)
        && mode & OTHERS != 0
    {
        warn!(path = %path.display(), mode = %format!("{mode:04o}"), "others may read the file of the API token: chmod 600 it");
    }
}

/// Follows the file and hands on each new token. While it cannot be read, the last good one counts.
pub(crate) async fn follow(path: PathBuf, token: watch::Sender<Token>, clock: Clock, stop: CancellationToken) {
    let looked = path.clone();
    let told = |news: &News| match news {
        News::None => {}
        News::Replaced => info!(path = %path.display(), "the API token was replaced"),
        News::Wrong(why) => warn!(error = %why, "the API token cannot be read again: the last one goes on to count"),
        News::RightAgain => info!(path = %path.display(), "the API token can be read again: it is the same"),
    };
    following::follow(move || read(&looked), token, told, clock, stop).await;
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_no_token_is_told_with_its_file_and_without_its_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        for (content, why) in [
            (&b""[..], "is empty"),
            (b" \n", "is empty"),
            (b"two words", "the token must be visible ASCII characters without blanks, at least one"),
            (b"\xff\xfe", "the token must be visible ASCII characters without blanks, at least one"),
            (&[b'x'; 5000], "has more than 4096 bytes: is it the file with the token?"),
        ] {
            fs::write(&file, content).expect("written");
            assert_eq!(read(&file).expect_err("no token"), format!("{}: {why}", file.display()));
        }
        assert!(read(&folder.path().join("none")).expect_err("no file").contains("none: No such file"));
        assert!(read(folder.path()).expect_err("a folder").ends_with("is not a regular file"));
        fs::write(&file, "s3cret\n").expect("written");
        assert_eq!(read(&file), Ok(Token::new("s3cret").expect("a token")));
    }
}
