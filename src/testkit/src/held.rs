//! A request that a server is certainly busy with, for as long as a test likes.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http::Reply;

/// Longer than any answer of the tests takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest head of an answer, in bytes.
const LONGEST_HEAD: usize = 64 << 10;

/// A POST of which half the body has been sent. The server has read its head and waits for the rest.
pub struct Held {
    socket: TcpStream,
    rest: Bytes,
}

impl Held {
    /// Sends the head and half of `body` to `path` at `address`.
    ///
    /// The head asks to be told before the body is sent; servers tell when their handler begins to read it. So when this
    /// returns, the request is in the server's hands and not in some queue of the system.
    ///
    /// # Errors
    /// When the server does not begin to read the body.
    pub async fn post(address: &str, path: &str, body: impl Into<Bytes>) -> Result<Self> {
        let body = body.into();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
            body.len()
        );
        let begin = async {
            let mut socket = TcpStream::connect(address).await?;
            socket.write_all(head.as_bytes()).await?;
            let told = read_head(&mut socket).await?;
            ensure!(told.starts_with("HTTP/1.1 100 "), "instead of asking for the body the server said {told:?}");
            let rest = body.slice(body.len() / 2..);
            socket.write_all(&body[..body.len() / 2]).await?;
            Ok(Held { socket, rest })
        };
        timeout(PATIENCE, begin).await.with_context(|| format!("POST {path}: nobody reads it"))?
    }

    /// Sends the rest of the body and reads the answer.
    ///
    /// # Errors
    /// When the connection ends without one.
    pub async fn finish(mut self) -> Result<Reply> {
        let exchange = async {
            self.socket.write_all(&self.rest).await.context("cannot send the rest of the body")?;
            let head = read_head(&mut self.socket).await?;
            let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).with_context(|| format!("no status in {head:?}"))?;
            let length = field(&head, "content-length").and_then(|length| length.parse().ok()).with_context(|| format!("no length in {head:?}"))?;
            let mut body = vec![0; length];
            self.socket.read_exact(&mut body).await.context("the answer was cut")?;
            Ok(Reply { status, retry_after: field(&head, "retry-after").map(str::to_owned), body: body.into() })
        };
        timeout(PATIENCE, exchange).await.context("the held request was not answered")?
    }
}

/// Reads up to the empty line. Byte by byte: what follows is not ours to take.
async fn read_head(socket: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < LONGEST_HEAD, "the head of the answer does not end");
        let mut byte = [0];
        if socket.read(&mut byte).await.context("the connection broke before an answer")? == 0 {
            bail!("the connection was closed before an answer; so far: {:?}", String::from_utf8_lossy(&head));
        }
        head.extend(byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_their_case() {
        let head = "HTTP/1.1 503 Busy\r\nRetry-After: 1\r\ncontent-length:12\r\n\r\n";
        assert_eq!((field(head, "retry-after"), field(head, "content-length"), field(head, "date")), (Some("1"), Some("12"), None));
    }
}
