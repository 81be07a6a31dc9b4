//! The server's side of HTTP/2, frame by frame, as a test tells it.

use berth_telemetry::Dialed;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::host::Door;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// The number that a reset or a window update carries.
    pub(super) fn number(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
}

/// One connection of a client.
pub(super) struct Peer {
    socket: Dialed,
}

impl Peer {
    /// Takes a connection, with these settings, and answers the first ping, so that the client believes in it.
    pub(super) async fn meet(door: &Door, settings: &[(u16, u32)]) -> Peer {
        let mut peer = Peer { socket: door.accept().await.unwrap() };
        let mut preface = [0; 24];
        peer.socket.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let payload: Vec<u8> = settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()).collect();
        peer.send(SETTINGS, 0, 0, &payload).await;
        peer.pong().await;
        peer
    }

    pub(super) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.socket.write_all(&frame).await.unwrap();
    }

    /// The head of an answer: status 200.
    pub(super) async fn head(&mut self, stream: u32, flags: u8) {
        self.send(HEADERS, flags | END_HEADERS, stream, &[0x88]).await;
    }

    pub(super) async fn number(&mut self, kind: u8, stream: u32, number: u32) {
        self.send(kind, 0, stream, &number.to_be_bytes()).await;
    }

    pub(super) async fn go_away(&mut self, last: u32, code: u32) {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat()).await;
    }

    /// The next frame of any kind; `None` at the end of the connection.
    async fn any(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.socket.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind: head[3], flags: head[4], stream: u32::from_be_bytes(head[5..].try_into().unwrap()), payload })
    }

    /// Answers the next ping, whatever comes before.
    pub(super) async fn pong(&mut self) {
        loop {
            match self.any().await.unwrap() {
                frame if frame.kind == SETTINGS && frame.flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await,
                frame if frame.kind == PING && frame.flags & ACK == 0 => return self.send(PING, ACK, 0, &frame.payload).await,
                _ => {}
            }
        }
    }

    /// The next frame that belongs to a call, or that says good-bye; `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            let frame = self.any().await?;
            if frame.stream > 0 || frame.kind == GOAWAY {
                return Some(frame);
            }
        }
    }

    /// The next frame of this kind; others are passed over.
    pub(super) async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            if frame.kind == kind {
                return frame;
            }
        }
    }
}
