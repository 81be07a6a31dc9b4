//! What subscribers are told about the copies here: the newest report per model, never a growing queue.
//!
//! A load that begins does not hide how the one before ended: a model that is asked for again and again, and fails each
//! time faster than it is read of, would be said to load for ever. So what is unread of a model is up to two reports, and
//! the reader gets them one after the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use berth_types::{CopyReport, CopyState, ModelId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::history::History;

/// What is still to be said of a model, in this order.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct News {
    /// The newest report that does not say that it loads.
    outcome: Option<CopyReport>,
    /// The newest report after that, when it loads (again).
    loading: Option<CopyReport>,
}

impl News {
    pub(crate) fn add(&mut self, report: CopyReport) {
        if matches!(report.state, CopyState::Loading { .. }) {
            self.loading = Some(report);
        } else {
            *self = News { outcome: Some(report), loading: None };
        }
    }

    /// What comes first of it.
    pub(crate) fn take(&mut self) -> Option<CopyReport> {
        self.outcome.take().or_else(|| self.loading.take())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.outcome.is_none() && self.loading.is_none()
    }
}

#[derive(Debug, Default)]
struct Subscriber {
    pending: Mutex<BTreeMap<ModelId, News>>,
    ended: std::sync::atomic::AtomicBool,
    ring: Notify,
}

#[derive(Debug, Default)]
struct Told {
    /// The newest report of each model that is not simply absent.
    latest: HashMap<ModelId, CopyReport>,
    subscribers: Vec<Weak<Subscriber>>,
    ended: bool,
}

/// The reports of this pod. One writer, the owner task.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Told>);

impl Board {
    pub(crate) fn publish(&self, report: CopyReport) {
        let mut told = self.0.lock();
        told.subscribers.retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            subscriber.pending.lock().entry(report.model.clone()).or_default().add(report.clone());
            subscriber.ring.notify_one();
            true
        });
        if report.state == CopyState::Absent && report.failure.is_none() {
            // A model of which nothing is here costs nothing here; its last use is in the history.
            told.latest.remove(&report.model);
        } else {
            told.latest.insert(report.model.clone(), report);
        }
    }

    /// A subscriber that begins with every report so far; models of which only the last use is known come as absent.
    pub(crate) fn subscribe(&self, history: &History) -> Reports {
        let mut told = self.0.lock();
        let mut pending: BTreeMap<ModelId, CopyReport> = history
            .used()
            .map(|(model, last_used)| {
                let report = CopyReport { model: model.clone(), state: CopyState::Absent, failure: None, mended: false, last_used: Some(last_used) };
                (model.clone(), report)
            })
            .collect();
        pending.extend(told.latest.iter().map(|(model, report)| (model.clone(), report.clone())));
        let news = |(model, report)| {
            let mut news = News::default();
            news.add(report);
            (model, news)
        };
        let pending = pending.into_iter().map(news).collect();
        let subscriber = Arc::new(Subscriber { pending: Mutex::new(pending), ended: told.ended.into(), ring: Notify::new() });
        told.subscribers.push(Arc::downgrade(&subscriber));
        Reports(subscriber)
    }

    /// No report comes after this.
    pub(crate) fn end(&self) {
        let mut told = self.0.lock();
        told.ended = true;
        for subscriber in told.subscribers.drain(..).filter_map(|subscriber| subscriber.upgrade()) {
            subscriber.ended.store(true, std::sync::atomic::Ordering::Release);
            subscriber.ring.notify_one();
        }
    }
}

/// A subscription to copy reports. A slow reader gets the newest per model; where a model loads again, how its last load
/// ended comes before that, in a call of its own.
#[derive(Debug)]
pub struct Reports(Arc<Subscriber>);

impl Reports {
    /// What there is to say now, without waiting: right after subscribing everything that is known, also when that is
    /// nothing. It counts as said. Never two reports of one model.
    #[must_use]
    pub fn so_far(&mut self) -> Vec<CopyReport> {
        let mut said = Vec::new();
        self.0.pending.lock().retain(|_, news| {
            said.extend(news.take());
            !news.is_empty()
        });
        said
    }

    /// The models that changed since the last call, each with one report, by id; waits until there is one.
    /// `None` when the owner task has ended and everything was read. May be cancelled without losing a report.
    pub async fn next(&mut self) -> Option<Vec<CopyReport>> {
        loop {
            // Read before the pending ones: what was published before the end is pending by then.
            let ended = self.0.ended.load(std::sync::atomic::Ordering::Acquire);
            let pending = self.so_far();
            if !pending.is_empty() {
                return Some(pending);
            }
            if ended {
                return None;
            }
            self.0.ring.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_types::UnixMillis;

    use super::*;

    fn report(name: &str, state: CopyState) -> CopyReport {
        CopyReport { model: ModelId::new(name).expect("a test's id is valid"), state, failure: None, mended: false, last_used: None }
    }

    fn loading(name: &str, since: u64) -> CopyReport {
        report(name, CopyState::Loading { since: UnixMillis(since) })
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_newest_report_of_each_model() {
        let board = Board::default();
        let mut reports = board.subscribe(&History::default());
        for since in 0..100 {
            board.publish(loading("a", since));
        }
        board.publish(loading("b", 1));
        assert_eq!(reports.next().await, Some(vec![loading("a", 99), loading("b", 1)]));
        board.publish(report("a", CopyState::Absent));
        board.end();
        assert_eq!(reports.next().await, Some(vec![report("a", CopyState::Absent)]), "what was said before the end is read");
        assert_eq!(reports.next().await, None);
    }

    #[tokio::test]
    async fn a_load_that_begins_does_not_hide_how_the_last_one_ended() {
        let failed = |time| CopyReport { last_used: Some(UnixMillis(time)), ..report("a", CopyState::Absent) };
        let board = Board::default();
        let mut reports = board.subscribe(&History::default());
        for time in [1, 2] {
            board.publish(loading("a", time));
            board.publish(failed(time));
        }
        board.publish(loading("a", 3));
        board.publish(loading("b", 3));
        board.end();
        assert_eq!(reports.next().await, Some(vec![failed(2), loading("b", 3)]));
        assert_eq!(reports.next().await, Some(vec![loading("a", 3)]));
        assert_eq!(reports.next().await, None);
    }

    #[tokio::test]
    async fn a_late_reader_begins_with_what_is_here_and_what_was_used() {
        let board = Board::default();
        board.publish(loading("a", 1));
        board.publish(loading("b", 1));
        board.publish(report("b", CopyState::Absent));
        let mut history = History::default();
        history.note_use(&ModelId::new("a").expect("valid"), UnixMillis(5));
        history.note_use(&ModelId::new("c").expect("valid"), UnixMillis(6));
        let mut reports = board.subscribe(&history);
        let first = reports.so_far();
        assert_eq!(reports.so_far(), [], "it was said");
        assert_eq!(first, [loading("a", 1), CopyReport { last_used: Some(UnixMillis(6)), ..report("c", CopyState::Absent) }]);
        board.end();
        assert_eq!(board.subscribe(&History::default()).next().await, Some(vec![loading("a", 1)]));
    }
}
