//! The places of a listener, and whose is given up when all are taken: that of the connection that has been open for longest
//! without having asked anything. Who has asked keeps its place until it is answered.

use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// The connections that have a place.
#[derive(Debug)]
pub(crate) struct Seats {
    places: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// The number of the next one: they count up, so the lowest is the oldest.
    next: u64,
    /// Those that have not asked yet: each is told by this that it has lost its place.
    idle: BTreeMap<u64, watch::Sender<bool>>,
    /// Those that have asked.
    asking: usize,
}

impl Seats {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, taken: Mutex::default() })
    }

    /// Whether a newcomer's place would be another one's.
    pub(crate) fn is_full(&self) -> bool {
        let taken = self.taken.lock();
        taken.idle.len() + taken.asking >= self.places
    }

    /// A place for a newcomer, which may be that of an idle one. None: all of them have asked something.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Seat> {
        let mut taken = self.taken.lock();
        if taken.idle.len() + taken.asking >= self.places {
            let (_, lost) = taken.idle.pop_first()?;
            lost.send_replace(true);
        }
        let (number, (lose, lost)) = (taken.next, watch::channel(false));
        taken.next += 1;
        taken.idle.insert(number, lose);
        Some(Seat { seats: Arc::clone(self), number, lost })
    }
}

/// The place of one connection. Dropped, it is free.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    number: u64,
    lost: watch::Receiver<bool>,
}

impl Seat {
    /// It has asked something: its place is its own. False: it was given to another one before.
    pub(crate) fn asks(&self) -> bool {
        let mut taken = self.seats.taken.lock();
        let kept = taken.idle.remove(&self.number).is_some();
        taken.asking += usize::from(kept);
        kept
    }

    /// Comes back once the place was given to another one: never, if this one asks before.
    pub(crate) async fn lost(&self) {
        if self.lost.clone().wait_for(|lost| *lost).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        if taken.idle.remove(&self.number).is_none() && !*self.lost.borrow() {
            taken.asking -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_idle_one_gives_way_and_who_has_asked_never() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take().unwrap(), seats.take().unwrap());
        assert!(seats.is_full() && first.asks());
        let third = seats.take().unwrap();
        assert!(*second.lost.borrow() && !second.asks() && !*first.lost.borrow());
        assert!(third.asks() && seats.take().is_none(), "both have asked");
        drop(second);
        assert!(seats.is_full(), "its place was another one's already");
        drop(first);
        assert!(!seats.is_full() && seats.take().is_some());
        drop(third);
        assert_eq!(seats.taken.lock().asking, 0);
    }
}
