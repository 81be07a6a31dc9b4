//! A process of ours: started, read, signalled by its id, and never left behind.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// A running program. Killed when this is dropped.
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    lines: watch::Receiver<Lines>,
}

/// What a process has written so far.
#[derive(Clone, Debug, Default)]
struct Lines {
    out: Vec<String>,
    errors: Vec<String>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => unreachable!("a process that was waited for ended by itself or by a signal"),
        }
    }
}

impl Exit {
    /// The end of a process that was killed.
    pub const KILLED: Exit = Exit::Signal(9);
}

impl Process {
    /// Starts `command` with nothing to read; `name` is for messages.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(name: impl Into<String>, command: std::process::Command) -> Result<Self> {
        let name = name.into();
        let mut command = Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}: {:?}", command.as_std().get_program()))?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).context("a process that has just been started has an id")?;
        let (sender, lines) = watch::channel(Lines::default());
        read(child.stdout.take().context("stdout is piped")?, sender.clone(), |lines| &mut lines.out);
        read(child.stderr.take().context("stderr is piped")?, sender, |lines| &mut lines.errors);
        Ok(Process { name, child, pid, lines })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// What it has written so far, for a message: first standard output, then the errors.
    #[must_use]
    pub fn written(&self) -> String {
        let lines = self.lines.borrow();
        format!("--- {} wrote:\n{}\n--- and as errors:\n{}\n---", self.name, lines.out.join("\n"), lines.errors.join("\n"))
    }

    /// Standard output so far.
    #[must_use]
    pub fn out(&self) -> String {
        self.lines.borrow().out.join("\n")
    }

    /// Standard error so far.
    #[must_use]
    pub fn errors(&self) -> String {
        self.lines.borrow().errors.join("\n")
    }

    /// The first line, on either stream, that `wanted` accepts; also one that was written before.
    ///
    /// # Errors
    /// When the process ends or `within` passes without such a line.
    pub async fn line(&mut self, what: &str, within: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let find = |lines: &Lines| lines.out.iter().chain(&lines.errors).find(|line| wanted(line)).cloned();
        let ended = match timeout(within, self.lines.wait_for(|lines| find(lines).is_some())).await {
            Ok(Ok(lines)) => return find(&lines).context("the line is still there"),
            Ok(Err(_closed)) => "it ended",
            Err(_elapsed) => "time ran out",
        };
        bail!("waited {within:?} for {what}: {ended}\n{}", self.written())
    }

    /// Sends a signal to it.
    ///
    /// # Errors
    /// What the system says.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for its end, however long that takes. What others still write to its pipes is not waited for.
    ///
    /// # Errors
    /// What the system says.
    pub async fn ended(&mut self) -> Result<Exit> {
        Ok(self.child.wait().await.with_context(|| format!("cannot wait for {}", self.name))?.into())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `within`.
    pub async fn exit(&mut self, within: Duration) -> Result<Exit> {
        let Ok(status) = timeout(within, self.child.wait()).await else { bail!("{} still runs after {within:?}\n{}", self.name, self.written()) };
        let exit = status.with_context(|| format!("cannot wait for {}", self.name))?.into();
        // Both pipes are closed with the process; what they still hold belongs to what it wrote.
        let _ = timeout(within, self.lines.wait_for(|_| false)).await;
        Ok(exit)
    }

    /// Kills it as a crash would and waits for its end.
    ///
    /// # Errors
    /// When it had ended already.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        match self.exit(Duration::from_secs(10)).await? {
            Exit::KILLED => Ok(()),
            other => bail!("{} had ended before it was killed: {other:?}\n{}", self.name, self.written()),
        }
    }
}

fn read(from: impl AsyncRead + Send + Unpin + 'static, to: watch::Sender<Lines>, side: fn(&mut Lines) -> &mut Vec<String>) {
    tokio::spawn(async move {
        let mut from = BufReader::new(from).split(b'\n');
        while let Ok(Some(line)) = from.next_segment().await {
            to.send_modify(|lines| side(lines).push(String::from_utf8_lossy(&line).into_owned()));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]);
        Process::start("a script", command).expect("sh is there")
    }

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn lines_exit_codes_and_signals_are_seen() {
        let mut process = shell("echo one; echo two >&2; exit 3");
        assert_eq!(process.line("two", SOON, |line| line.starts_with("tw")).await.expect("written"), "two");
        assert_eq!(process.exit(SOON).await.expect("ended"), Exit::Code(3));
        assert_eq!((process.out(), process.errors()), ("one".to_owned(), "two".to_owned()));

        let mut process = shell("echo up; exec sleep 100");
        process.line("up", SOON, |line| line == "up").await.expect("written");
        process.kill().await.expect("it was running");
    }

    #[tokio::test]
    async fn a_line_that_never_comes_is_told_with_what_did() {
        let fault = shell("echo other").line("ready", SOON, |line| line == "ready").await.expect_err("never written");
        assert!(fault.to_string().contains("it ended") && fault.to_string().contains("other"), "{fault}");
    }
}
