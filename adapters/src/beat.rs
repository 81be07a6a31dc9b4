//! A server's heartbeat: it is asked whether it lives, once a second, and at once when somebody has reason to ask.

use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::Clock;
use berth_types::Deadline;
use tokio::sync::{Notify, watch};

use crate::Health;
use crate::rpc::RpcError;

/// Between two questions while it answers, and while it does not.
const UP: Duration = Duration::from_secs(1);
const DOWN: Duration = Duration::from_millis(200);
/// How long an answer may take. A server that computes with all its threads is slow to say that it lives.
const PATIENCE: Duration = Duration::from_secs(5);
/// Answers in a row that may not come before it counts as hung.
const MISSED: u32 = 3;

/// Asks until the last receiver of `told` is gone, and tells what changes. While `it_loads`, silence means nothing: some servers
/// load with the thread that answers. A load has a limit of its own. `now` has it asked at once.
pub(crate) async fn listen<F>(ask: impl Fn(Deadline) -> F, clock: Clock, it_loads: impl Fn() -> bool, now: Arc<Notify>, told: watch::Sender<Health>)
where
    F: Future<Output = Result<(), RpcError>>,
{
    let mut missed = 0;
    while !told.is_closed() {
        let pause = if *told.borrow() == Health::Up { UP } else { DOWN };
        let _ = clock.until(clock.deadline_in(pause), now.notified()).await;
        let health = match ask(clock.deadline_in(PATIENCE)).await {
            // One that speaks and finds itself dead is a matter of its own probes; it does answer.
            Ok(()) | Err(RpcError::Said { .. }) => Some(Health::Up),
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

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_is_down_when_it_is_gone_or_silent_too_often_and_up_with_its_next_answer() {
        let late = || Err(RpcError::Late);
        let away = || Err(RpcError::Away("refused".to_owned()));
        for (case, answers, loads, down) in [
            ("gone", vec![away()], false, true),
            ("silent once and again", vec![late(), late()], false, false),
            ("silent three times", vec![late(), late(), late()], false, true),
            ("silent while it loads", vec![late(), late(), late(), late()], true, false),
            ("gone while it loads", vec![away()], true, true),
            ("silence with an answer between", vec![late(), late(), Ok(()), late(), late()], false, false),
        ] {
            let (told, mut health) = watch::channel(Health::Up);
            let answers = Arc::new(Mutex::new(answers.into_iter().rev().collect::<Vec<_>>()));
            let asked = Arc::clone(&answers);
            let clock = Clock::system();
            let asking = listen(
                move |_deadline| {
                    let answer = asked.lock().pop();
                    async move {
                        match answer {
                            Some(answer) => answer,
                            None => std::future::pending().await,
                        }
                    }
                },
                clock.clone(),
                move || loads,
                Arc::default(),
                told,
            );
            let done = clock.until(clock.deadline_in(Duration::from_secs(100)), asking).await;
            assert!(done.is_none() && answers.lock().is_empty(), "{case}: every answer was taken");
            assert_eq!(matches!(*health.borrow_and_update(), Health::Down { .. }), down, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_reason_to_ask_does_not_wait_for_the_next_question() {
        let ((told, mut health), now, clock) = (watch::channel(Health::Up), Arc::<Notify>::default(), Clock::system());
        let began = clock.now();
        let asked =
            tokio::spawn(listen(|_deadline| async { Err(RpcError::Away("refused".to_owned())) }, clock.clone(), || false, Arc::clone(&now), told));
        now.notify_one();
        health.changed().await.expect("it is told");
        assert_eq!(clock.now(), began);
        asked.abort();
    }
}
