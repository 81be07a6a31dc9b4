//! gRPC calls through public clients: one order, one outcome, whichever client carries it out.
//!
//! Orders and outcomes are JSON, described in `tests/go/call` and `tests/system/call.py`.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use crate::parts::part;
use crate::{Exit, Parts, Process};

/// A public client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// grpc-go.
    Go,
    /// grpcio, on gRPC's C library.
    Python,
}

/// Who may send how many messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One each.
    Unary,
    /// The server many.
    Server,
    /// The client many.
    Client,
    /// Both many.
    Bidi,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Unary, Kind::Server, Kind::Client, Kind::Bidi];

    const fn name(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::Server => "server",
            Kind::Client => "client",
            Kind::Bidi => "bidi",
        }
    }
}

/// What a client is to do.
#[derive(Clone, Debug)]
pub struct Order(Value);

impl Order {
    /// A call of `method`, such as `/package.Service/Method`, without a message.
    #[must_use]
    pub fn new(kind: Kind, method: &str) -> Self {
        Order(json!({"method": method, "kind": kind.name(), "messages": [], "metadata": {}}))
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.0[key] = value;
        self
    }

    /// Sends one more message.
    #[must_use]
    pub fn message(self, message: impl AsRef<[u8]>) -> Self {
        self.padded(message, 0, [])
    }

    /// Sends one more message: between `head` and `tail` there is a field of `pad` bytes that nobody knows.
    #[must_use]
    pub fn padded(mut self, head: impl AsRef<[u8]>, pad: usize, tail: impl AsRef<[u8]>) -> Self {
        let message = json!({"head": STANDARD.encode(head), "pad": pad, "tail": STANDARD.encode(tail)});
        self.0["messages"].as_array_mut().expect("new() made a list").push(message);
        self
    }

    /// Sends one more value of metadata; of a name that ends in `-bin`, any bytes.
    #[must_use]
    pub fn metadata(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let value = if name.ends_with("-bin") { STANDARD.encode(value) } else { String::from_utf8_lossy(value).into_owned() };
        let values = &mut self.0["metadata"][name];
        match values.as_array_mut() {
            Some(values) => values.push(json!(value)),
            None => *values = json!([value]),
        }
        self
    }

    /// Waits so long and no longer.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with("timeout_ms", json!(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Sends its messages compressed: `gzip`, or from Python also `deflate`.
    #[must_use]
    pub fn compressed(self, with: &str) -> Self {
        self.with("compression", json!(with))
    }

    /// Takes no larger messages than this, in bytes.
    #[must_use]
    pub fn takes_at_most(self, bytes: usize) -> Self {
        self.with("max_receive", json!(bytes))
    }

    /// Gives up after so many answers; 0 is when the header has come.
    #[must_use]
    pub fn cancelled_after(self, answers: usize) -> Self {
        self.with("cancel_after", json!(answers))
    }

    /// Sends each message but the first when the one before it has been answered.
    #[must_use]
    pub fn in_turns(self) -> Self {
        self.with("in_turns", json!(true))
    }

    /// Does not say that its messages have ended.
    #[must_use]
    pub fn stays_open(self) -> Self {
        self.with("stays_open", json!(true))
    }

    /// Says what the echo server is to do with the call: the fields are described there.
    #[must_use]
    pub fn echo(self, order: &Value) -> Self {
        self.metadata("echo-order-bin", order.to_string())
    }

    /// Gives the call a name, by which [`crate::GoEcho`] knows it.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.metadata("echo-call", name)
    }
}

/// A message that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Bytes.
    pub size: usize,
    /// In hexadecimal digits.
    pub sha256: String,
    /// Its content; `None` for more than 64 KiB.
    pub bytes: Option<Vec<u8>>,
    /// The id that the echo server found in it.
    pub id: Option<String>,
}

impl Seen {
    pub(crate) fn of(told: &Value) -> Result<Self> {
        Ok(Seen {
            size: told["size"].as_u64().and_then(|size| usize::try_from(size).ok()).with_context(|| format!("no size in {told}"))?,
            sha256: told["sha256"].as_str().unwrap_or_default().to_owned(),
            bytes: told["bytes"].as_str().map(|bytes| STANDARD.decode(bytes)).transpose()?,
            id: told["id"].as_str().map(str::to_owned),
        })
    }

    /// Its content as JSON.
    ///
    /// # Errors
    /// When it is none, or too large to be told.
    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_slice(self.bytes.as_deref().context("too large to be told")?)?)
    }
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// gRPC's code.
    pub code: i64,
    /// What was said.
    pub message: String,
    /// `grpc-status-details-bin`; empty where there was none.
    pub status: Vec<u8>,
    /// Metadata before the answers.
    pub header: Metadata,
    /// Metadata after them.
    pub trailer: Metadata,
    /// What came.
    pub answers: Vec<Seen>,
    /// How long it took.
    pub took: Duration,
}

/// Names in lower case with their values; those of names that end in `-bin` in base64.
pub type Metadata = BTreeMap<String, Vec<String>>;

pub(crate) fn metadata(told: &Value) -> Metadata {
    let values = |values: &Value| values.as_array().into_iter().flatten().filter_map(|value| value.as_str().map(str::to_owned)).collect();
    told.as_object().unwrap_or(&Map::new()).iter().map(|(name, given)| (name.clone(), values(given))).collect()
}

impl Outcome {
    fn of(told: &Value) -> Result<Self> {
        Ok(Outcome {
            code: told["code"].as_i64().with_context(|| format!("no code in {told}"))?,
            message: told["message"].as_str().unwrap_or_default().to_owned(),
            status: STANDARD.decode(told["status"].as_str().unwrap_or_default())?,
            header: metadata(&told["header"]),
            trailer: metadata(&told["trailer"]),
            answers: told["answers"].as_array().into_iter().flatten().map(Seen::of).collect::<Result<_>>()?,
            took: Duration::from_millis(told["took_ms"].as_u64().unwrap_or_default()),
        })
    }

    /// The one answer of a call that went well.
    ///
    /// # Errors
    /// With what came instead.
    pub fn good(&self) -> Result<&Seen> {
        match self.answers.as_slice() {
            [answer] if self.code == 0 => Ok(answer),
            answers => bail!("code {} {:?}, {} answers", self.code, self.message, answers.len()),
        }
    }
}

impl Client {
    /// Both.
    pub const ALL: [Client; 2] = [Client::Go, Client::Python];

    /// Carries out `orders` one after another against `target`, `HOST:PORT` or `unix:/PATH`.
    ///
    /// # Errors
    /// When the client fails, which a call that ends with a code does not mean.
    pub async fn calls(self, parts: &Parts, target: &str, orders: &[Order]) -> Result<Vec<Outcome>> {
        let mut calling = self.start(parts, target, orders)?;
        let process = &mut calling.process;
        let exit = process.exit(Duration::from_secs(120)).await?;
        ensure!(exit == Exit::Code(0), "{self:?} ended with {exit:?}\n{}", process.written());
        let outcomes = process.out().lines().map(|line| Outcome::of(&serde_json::from_str(line)?)).collect::<Result<Vec<_>>>()?;
        ensure!(outcomes.len() == orders.len(), "{} outcomes of {} orders\n{}", outcomes.len(), orders.len(), process.written());
        Ok(outcomes)
    }

    /// Carries out one order.
    ///
    /// # Errors
    /// When the client fails, which a call that ends with a code does not mean.
    pub async fn call(self, parts: &Parts, target: &str, order: Order) -> Result<Outcome> {
        self.calls(parts, target, &[order]).await?.pop().context("one outcome of one order")
    }

    /// Starts to carry out `orders`, for a test that ends the client before they have ended.
    ///
    /// # Errors
    /// When the client cannot be started.
    pub fn start(self, parts: &Parts, target: &str, orders: &[Order]) -> Result<Calling> {
        let file = NamedTempFile::new()?;
        serde_json::to_writer(&file, &orders.iter().map(|order| &order.0).collect::<Vec<_>>())?;
        let (mut command, dashes) = match self {
            Client::Go => (Command::new(part("BERTH_GO_ECHO")?.with_file_name("call")), "-"),
            Client::Python => {
                let mut command = Command::new(&parts.python);
                command.arg("-B").arg(crate::root().join("tests/system/call.py")).env("PYTHONUNBUFFERED", "1");
                (command, "--")
            }
        };
        command.args([&format!("{dashes}target"), target, &format!("{dashes}orders")]).arg(file.path());
        Ok(Calling { process: Process::start(format!("{self:?} client"), command)?, _orders: file })
    }
}

/// A client at work. Killed when dropped.
pub struct Calling {
    process: Process,
    /// Removed with it.
    _orders: NamedTempFile,
}

impl Calling {
    /// Kills the client as a crash would.
    ///
    /// # Errors
    /// When it had ended already.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }
}
