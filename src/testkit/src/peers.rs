//! Peers that a server would rather not have, or very many that are good, in a process of their own.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::Process;
use crate::parts::part;

/// Time for ten thousand connections on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What peers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// They connect and say nothing.
    Silent,
    /// They have asked once over HTTP/1 and keep their connection for later.
    RestingHttp1,
    /// They speak HTTP/2, answer pings and ask for nothing.
    RestingHttp2,
    /// They speak HTTP/2 and then answer nothing any more, as if they had lost their power.
    HalfOpen,
    /// They send the head of a request byte by byte and never end it.
    SlowHead,
    /// They send the body of an inference request byte by byte.
    SlowBody,
    /// They send what no protocol knows.
    Garbage,
    /// They break off in the middle of a request with a reset.
    Reset,
}

impl Manner {
    const fn name(self) -> &'static str {
        match self {
            Manner::Silent => "silent",
            Manner::RestingHttp1 => "http1",
            Manner::RestingHttp2 => "http2",
            Manner::HalfOpen => "half-open",
            Manner::SlowHead => "slow-head",
            Manner::SlowBody => "slow-body",
            Manner::Garbage => "garbage",
            Manner::Reset => "reset",
        }
    }
}

/// Peers that hold their connections. All end when this is dropped.
pub struct Peers {
    process: Process,
}

impl Peers {
    /// Waits until `count` of them are connected to `address` and do what they do.
    ///
    /// # Errors
    /// When one of them is refused.
    pub async fn hold(address: &str, manner: Manner, count: usize) -> Result<Self> {
        let mut command = Command::new(part("BERTH_GO_ECHO")?.with_file_name("peers"));
        command.args(["-target", address, "-mode", manner.name(), "-count", &count.to_string()]);
        let mut process = Process::start(format!("{manner:?} peers"), command)?;
        let holding = format!("holding {count}");
        process.line(&format!("{count} connections"), PATIENCE, |line| line == holding).await?;
        Ok(Peers { process })
    }

    /// Waits until every one of them has ended or was ended by the server.
    ///
    /// # Errors
    /// When one of them still holds its connection after `within`.
    pub async fn all_ended(&mut self, within: Duration) -> Result<()> {
        self.process.line("the end of every connection", within, |line| line == "all ended").await?;
        Ok(())
    }
}
