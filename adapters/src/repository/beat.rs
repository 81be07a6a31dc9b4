//! The server's heartbeat: it is asked whether it lives, once a second.

use std::sync::Arc;
use std::time::Duration;

use berth_proto::inference::{ServerLiveRequest, ServerLiveResponse};
use berth_telemetry::Clock;
use tokio::sync::watch;

use crate::Health;
use crate::rpc::{Rpc, RpcError};

const LIVE: &str = "/inference.GRPCInferenceService/ServerLive";

/// Between two questions while it answers, and while it does not.
const UP: Duration = Duration::from_secs(1);
const DOWN: Duration = Duration::from_millis(200);
/// How long an answer may take. A server that computes with all its threads is slow to say that it lives.
const PATIENCE: Duration = Duration::from_secs(5);
/// Answers in a row that may not come before it counts as hung.
const MISSED: u32 = 3;

/// Asks until the last receiver of `told` is gone, and tells what changes. While `it_loads`, silence means nothing: MLServer has
/// one thread for its answers, and most of its models load with that one. A load has a limit of its own.
pub(super) async fn listen(rpc: Rpc, clock: Clock, it_loads: impl Fn() -> bool, told: watch::Sender<Health>) {
    let mut missed = 0;
    while !told.is_closed() {
        clock.sleep(if *told.borrow() == Health::Up { UP } else { DOWN }).await;
        let answer = rpc.call::<ServerLiveResponse>(LIVE, &ServerLiveRequest {}, clock.deadline_in(PATIENCE)).await;
        let health = match answer {
            // One that speaks and finds itself dead is a matter of its own probes; it does answer.
            Ok(_) | Err(RpcError::Said { .. }) => Some(Health::Up),
            Err(RpcError::Late) if missed + 1 < MISSED || it_loads() => None,
            Err(RpcError::Late) => Some(Health::Down { why: Arc::from(format!("it has not said that it lives for {:?}", PATIENCE * MISSED)) }),
            Err(why @ (RpcError::Away(_) | RpcError::Unreadable(_))) => Some(Health::Down { why: Arc::from(why.to_string()) }),
        };
        missed = if health.is_some() || it_loads() { 0 } else { missed + 1 };
        if let Some(health) = health {
            told.send_if_modified(|known| {
                let differs = std::mem::discriminant(known) != std::mem::discriminant(&health);
                if differs {
                    *known = health;
                }
                differs
            });
        }
    }
}
