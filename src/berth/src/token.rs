//! The token of the resource API: where it comes from, and that a new one in its file counts without a restart.
//!
//! A token is never part of a message, a log line or a `Debug` output: faults name the file or variable and the reason.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::Token;
use berth_telemetry::Clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::serve::shown;

/// Bits of a mode that let others than the owner read or change a file.
const OTHERS: u32 = 0o077;
/// No token is longer; whoever names another file by mistake is told so.
const LONGEST: u64 = 4096;
/// How often the file is read again.
const LOOK_EVERY: Duration = Duration::from_secs(3);

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

/// Reads the file again and again and hands on each new token. While it cannot be read, the last good one counts.
pub(crate) async fn follow(path: PathBuf, token: watch::Sender<Token>, clock: Clock, stop: CancellationToken) {
    let mut follower = Follower { token, wrong: None };
    while stop.run_until_cancelled(clock.sleep(LOOK_EVERY)).await.is_some() {
        let looked = path.clone();
        // A local file; where a mount hangs, only this look does, and the next one waits for it.
        let Ok(found) = tokio::task::spawn_blocking(move || read(&looked)).await else { continue };
        match follower.take(found) {
            News::None => {}
            News::Replaced => info!(path = %path.display(), "the API token was replaced"),
            News::Wrong(why) => warn!(error = %why, "the API token cannot be read again: the last one goes on to count"),
            News::RightAgain => info!(path = %path.display(), "the API token can be read again: it is the same"),
        }
    }
}

struct Follower {
    token: watch::Sender<Token>,
    /// What was wrong at the last look; said once.
    wrong: Option<String>,
}

/// What a look at the file has shown that was not known.
#[derive(Debug, PartialEq, Eq)]
enum News {
    None,
    Replaced,
    Wrong(String),
    RightAgain,
}

impl Follower {
    fn take(&mut self, found: Result<Token, String>) -> News {
        match found {
            Ok(found) => {
                let was_wrong = self.wrong.take().is_some();
                let replaced = self.token.send_if_modified(|present| std::mem::replace(present, found.clone()) != found);
                match (replaced, was_wrong) {
                    (true, _) => News::Replaced,
                    (false, true) => News::RightAgain,
                    (false, false) => News::None,
                }
            }
            Err(why) if self.wrong.as_ref() == Some(&why) => News::None,
            Err(why) => {
                self.wrong = Some(why.clone());
                News::Wrong(why)
            }
        }
    }
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

    #[test]
    fn a_new_token_counts_and_while_there_is_none_the_last_one_does() {
        let token = |text: &str| Token::new(text).expect("a token");
        let (sender, receiver) = watch::channel(token("one"));
        let mut follower = Follower { token: sender, wrong: None };
        let empty = || Err("f: is empty".to_owned());
        let gone = || Err("f: no such file".to_owned());
        for (found, news, counts) in [
            (Ok(token("one")), News::None, "one"),
            (empty(), News::Wrong("f: is empty".to_owned()), "one"),
            (empty(), News::None, "one"),
            (gone(), News::Wrong("f: no such file".to_owned()), "one"),
            (Ok(token("one")), News::RightAgain, "one"),
            (gone(), News::Wrong("f: no such file".to_owned()), "one"),
            (Ok(token("two")), News::Replaced, "two"),
            (Ok(token("two")), News::None, "two"),
        ] {
            assert_eq!(follower.take(found), news);
            assert_eq!(*receiver.borrow(), token(counts));
        }
    }
}
