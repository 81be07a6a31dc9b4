//! Writing for several calls at once.
//!
//! The task of a connection is woken by the first call that has something to write, and would write that before the next
//! call has had its turn: a system call, a packet and a wake-up of the other side for each. [`Gather`] lets the tasks that
//! are ready go first, as long as that has lately brought more to write; where it has not (few callers, idle processors)
//! it stays out of the way but for a look now and then.

use std::pin::pin;
use std::task::{Context, Poll};

/// The most turns that are taken at once after others had nothing to add.
const MOST: u32 = 64;

/// Decides whether the task of a connection lets others go before it, where there is something new to write.
#[derive(Debug, Default)]
pub struct Gather {
    /// What had been added by the last turn.
    seen: u64,
    /// What had been added when others were let go first; `None`: it is not their turn.
    before: Option<u64>,
    /// Turns to be taken at once.
    left: u32,
    /// How many those were the last time.
    pause: u32,
}

impl Gather {
    /// Asked first in each turn of the task. Pending: it should end its turn, it is woken again behind those that are ready;
    /// then this is ready. `added`: how often somebody has given the connection something to write.
    pub fn poll(&mut self, added: u64, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waits(added) {
            return Poll::Ready(());
        }
        // Not by its waker: that would call another thread in, to carry it on there.
        pin!(tokio::task::yield_now()).poll(cx)
    }

    /// Whether it ends its turn.
    fn waits(&mut self, added: u64) -> bool {
        if let Some(before) = self.before.take() {
            self.pause = if added == before { (2 * self.pause + 1).min(MOST) } else { 0 };
            (self.left, self.seen) = (self.pause, added);
            return false;
        }
        // A turn for what has come, or for the room to write: nobody is about to add to that.
        if std::mem::replace(&mut self.seen, added) == added {
            return false;
        }
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        self.before = Some(added);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `turns` turns, in how many others were let go first, who then had `more` to add.
    fn waited(gather: &mut Gather, turns: usize, more: u64, added: &mut u64) -> usize {
        let mut waited = 0;
        for _ in 0..turns {
            *added += 1; // why the task is woken
            if gather.waits(*added) {
                waited += 1;
                *added += more;
                assert!(!gather.waits(*added), "others go first once, not twice");
            }
        }
        waited
    }

    #[test]
    fn others_go_first_as_long_as_they_add_something_and_else_now_and_then() {
        let (mut gather, mut added) = (Gather::default(), 0);
        assert_eq!(waited(&mut gather, 100, 3, &mut added), 100);
        assert_eq!(waited(&mut gather, 1000, 0, &mut added), 20, "after 1, 3, 7, .. and then 64 turns");
        assert_eq!(waited(&mut gather, 100, 1, &mut added), 64, "after the rest of a pause, 36 turns, each time again");
    }

    #[test]
    fn a_turn_with_nothing_new_to_write_is_taken_at_once_and_counts_for_nothing() {
        let mut gather = Gather::default();
        assert!(!gather.waits(0), "nothing was ever written");
        for added in (2..100).step_by(2) {
            assert!(gather.waits(added), "others have added something each time");
            assert!(!gather.waits(added + 1));
            assert!((0..5).all(|_| !gather.waits(added + 1)));
        }
    }
}
