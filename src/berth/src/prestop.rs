//! The end as ModelMesh's pods ask for it: the containers beside this one ask before they end themselves, and have their answer when
//! nothing needs them any more.
//!
//! Whoever asks first begins the drain; it goes on when nobody waits for it. What follows it is the signal to end.

use std::sync::Arc;
use std::time::Duration;

use berth_proxy::PreStop as Hook;
use berth_telemetry::Clock;
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nothing is served yet.
    Starting,
    Serving,
    Asked,
    Drained,
}

/// Whether somebody asked, and whether everything has drained. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct PreStop(Arc<watch::Sender<Stage>>);

impl PreStop {
    pub(crate) fn new() -> Self {
        PreStop(Arc::new(watch::Sender::new(Stage::Starting)))
    }

    /// Requests are served from now on.
    pub(crate) fn serving(&self) {
        self.0.send_if_modified(|stage| std::mem::replace(stage, (*stage).max(Stage::Serving)) == Stage::Starting);
    }

    /// Completes when somebody asked.
    pub(crate) async fn asked(&self) {
        self.reached(Stage::Asked).await;
    }

    /// Everything has drained, whoever asked for it.
    pub(crate) fn drained(&self) {
        self.0.send_replace(Stage::Drained);
    }

    /// Asks, and waits for the end of the drain, for `limit` at most. Before anything is served there is nothing to drain: the server that
    /// is not there yet may begin anew.
    async fn ask(&self, limit: Duration, clock: &Clock) -> Result<(), String> {
        if *self.0.borrow() == Stage::Starting {
            return Ok(());
        }
        self.0.send_if_modified(|stage| std::mem::replace(stage, (*stage).max(Stage::Asked)) == Stage::Serving);
        let drained = clock.until(clock.deadline_in(limit), self.reached(Stage::Drained)).await;
        drained.ok_or_else(|| format!("not drained after {limit:?}"))
    }

    async fn reached(&self, wanted: Stage) {
        // The sender lives in `self`, so the channel cannot be closed here.
        let _ = self.0.subscribe().wait_for(|stage| *stage >= wanted).await;
    }

    /// What the port answers with.
    pub(crate) fn hook(&self, limit: Duration, clock: Clock) -> Hook {
        let prestop = self.clone();
        Arc::new(move || {
            let (prestop, clock) = (prestop.clone(), clock.clone());
            Box::pin(async move { prestop.ask(limit, &clock).await })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn who_asks_begins_the_drain_and_waits_for_its_end_as_does_who_asks_later() {
        let (clock, prestop) = (Clock::system(), PreStop::new());
        prestop.serving();
        let (began, hook) = (clock.now(), prestop.hook(LIMIT, clock.clone()));
        let draining = async {
            prestop.asked().await;
            clock.sleep(Duration::from_secs(20)).await;
            prestop.drained();
        };
        let later = async {
            clock.sleep(Duration::from_secs(5)).await;
            hook().await
        };
        let (first, second, ()) = tokio::join!(hook(), later, draining);
        assert_eq!((first, second, clock.now() - began), (Ok(()), Ok(()), Duration::from_secs(20)));
        assert_eq!((hook().await, clock.now() - began), (Ok(()), Duration::from_secs(20)), "it stays drained");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_before_anything_is_served_is_answered_at_once_and_begins_no_drain() {
        let (clock, prestop) = (Clock::system(), PreStop::new());
        assert_eq!(prestop.hook(LIMIT, clock.clone())().await, Ok(()));
        prestop.serving();
        assert_eq!(clock.until(clock.deadline_in(LIMIT), prestop.asked()).await, None, "nobody has asked for one");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_comes_in_time_whatever_becomes_of_the_drain() {
        let (clock, prestop) = (Clock::system(), PreStop::new());
        prestop.serving();
        let began = clock.now();
        let answer = prestop.hook(LIMIT, clock.clone())().await;
        assert_eq!((answer, clock.now() - began), (Err("not drained after 60s".to_owned()), LIMIT));
        prestop.asked().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_a_signal_began_answers_who_asks_and_nobody_begins_another() {
        let (clock, prestop) = (Clock::system(), PreStop::new());
        prestop.serving();
        prestop.drained();
        assert_eq!(prestop.hook(LIMIT, clock.clone())().await, Ok(()));
    }
}
