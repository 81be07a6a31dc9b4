//! A program in a process group of its own: it ends, with all that it started, at its deadline and when we do.

use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// A running program. All that is left of its group is killed when this is dropped.
pub(crate) struct Group {
    id: Pid,
    child: Child,
    /// A shell that kills the group once its standard input is closed. That happens however we end: a signal from the
    /// terminal goes to our group, not to the program's.
    guard: Child,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    By(ExitStatus),
    /// It was killed at its deadline.
    OutOfTime,
}

impl Group {
    /// Starts `command`.
    pub(crate) fn start(command: &mut Command) -> Result<Group> {
        let child = command.process_group(0).spawn().with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let id = Pid::from_child(&child);
        let mut guard = Command::new("sh");
        guard.args(["-c", "read -r _; kill -s KILL -- \"-$0\"", &id.as_raw_nonzero().to_string()]);
        let guard = guard.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        match guard.context("cannot run sh") {
            Ok(guard) => Ok(Group { id, child, guard }),
            Err(fault) => {
                let _ = kill_process_group(id, Signal::KILL);
                Err(fault)
            }
        }
    }

    /// Waits for the end, until `deadline` (`None`: as long as it takes), while `follow` reads what the program writes
    /// if that is piped.
    pub(crate) fn wait(mut self, deadline: Option<Instant>, follow: impl FnOnce(Option<ChildStdout>) -> Result<()>) -> Result<End> {
        let id = self.id;
        let (ended, end) = mpsc::channel::<()>();
        let clock = std::thread::spawn(move || {
            let Some(deadline) = deadline else { return false };
            let late = end.recv_timeout(deadline.saturating_duration_since(now())) == Err(RecvTimeoutError::Timeout);
            if late {
                let _ = kill_process_group(id, Signal::KILL);
            }
            late
        });
        // A program that closes its output may still run; one that has ended may have left others that hold it open.
        let followed = follow(self.child.stdout.take());
        let status = self.child.wait().context("cannot wait for the command");
        drop(ended);
        let late = clock.join().expect("waiting does not panic");
        followed?;
        Ok(if late { End::OutOfTime } else { End::By(status?) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        let _ = self.child.wait();
    }
}

/// Now, for deadlines and for the times in the table.
#[allow(clippy::disallowed_methods, reason = "the programs that are waited for live in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> Group {
        Group::start(Command::new("sh").args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped())).expect("sh is there")
    }

    #[test]
    fn a_program_that_ends_in_time_tells_its_status() {
        let end = shell("exit 3").wait(Some(now() + Duration::from_mins(1)), |_| Ok(())).expect("waited");
        assert!(matches!(end, End::By(status) if status.code() == Some(3)), "{end:?}");
    }

    /// Reads until the last process has ended that holds the output open.
    fn until_closed(out: Option<ChildStdout>) -> Result<()> {
        out.expect("it is piped").read_to_end(&mut Vec::new())?;
        Ok(())
    }

    #[test]
    fn a_program_is_killed_at_its_deadline_with_all_that_it_started() {
        let start = now();
        let end = shell("sleep 300 & sleep 300").wait(Some(start + Duration::from_millis(300)), until_closed);
        assert_eq!(end.expect("waited"), End::OutOfTime);
        assert!(start.elapsed() < Duration::from_mins(1), "it was waited for");
    }

    #[test]
    fn a_program_that_nobody_waits_for_any_more_is_killed_with_all_that_it_started() {
        let start = now();
        let mut group = shell("sleep 300 & sleep 300");
        let out = group.child.stdout.take();
        drop(group);
        until_closed(out).expect("readable");
        assert!(start.elapsed() < Duration::from_mins(1), "it was waited for");
    }

    #[test]
    fn what_a_program_leaves_behind_when_it_ends_does_not_outlive_its_deadline() {
        let start = now();
        let end = shell("sleep 300 & exit 0").wait(Some(start + Duration::from_millis(300)), until_closed);
        assert_eq!(end.expect("waited"), End::OutOfTime);
        assert!(start.elapsed() < Duration::from_mins(1), "it was waited for");
    }
}
