//! Where requests wait for an instance: first come, first served, bounded in number and time.
//!
//! Pure: who waits is a number, time is an argument. What becomes of the number is the caller's.

use std::{collections::VecDeque, time::Instant};

/// One waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Waiter(pub u64);

/// The room of one app.
#[derive(Debug)]
pub struct WaitingRoom {
    bound: usize,
    queue: VecDeque<(Waiter, Instant)>,
}

/// There is no place left.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl WaitingRoom {
    /// A room with this many places.
    pub fn new(bound: usize) -> Self {
        Self { bound, queue: VecDeque::new() }
    }

    /// Changes the number of places; who waits already stays.
    pub fn resize(&mut self, bound: usize) {
        self.bound = bound;
    }

    /// Lets a request wait until `deadline`.
    pub fn enter(&mut self, waiter: Waiter, deadline: Instant) -> Result<(), Full> {
        if self.is_full() {
            return Err(Full);
        }
        self.queue.push_back((waiter, deadline));
        Ok(())
    }

    /// The one whose turn it is.
    pub fn call(&mut self) -> Option<Waiter> {
        self.queue.pop_front().map(|(waiter, _)| waiter)
    }

    /// Sends away those whose deadline has passed.
    pub fn expire(&mut self, now: Instant) -> Vec<Waiter> {
        let mut gone = Vec::new();
        self.queue.retain(|(waiter, deadline)| {
            let stays = *deadline > now;
            if !stays {
                gone.push(*waiter);
            }
            stays
        });
        gone
    }

    /// Sends everyone away.
    pub fn clear(&mut self) -> Vec<Waiter> {
        self.queue.drain(..).map(|(waiter, _)| waiter).collect()
    }

    /// Whether there is no place left.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= self.bound
    }

    /// Takes the places of those who have gone by themselves.
    pub fn leave(&mut self, gone: impl Fn(Waiter) -> bool) {
        self.queue.retain(|(waiter, _)| !gone(*waiter));
    }

    /// When the next deadline passes.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.queue.iter().map(|(_, deadline)| *deadline).min()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(base: Instant, millis: u64) -> Instant {
        base + Duration::from_millis(millis)
    }

    #[test]
    fn who_has_gone_frees_a_place() {
        let (mut room, now) = (WaitingRoom::new(2), crate::clock::now());
        (0..2).for_each(|n| room.enter(Waiter(n), at(now, 10)).unwrap());
        assert!(room.is_full());
        room.leave(|waiter| waiter == Waiter(0));
        room.enter(Waiter(2), at(now, 10)).unwrap();
        assert_eq!((room.call(), room.call()), (Some(Waiter(1)), Some(Waiter(2))));
    }

    #[test]
    fn first_come_is_first_served() {
        let (mut room, now) = (WaitingRoom::new(3), crate::clock::now());
        for n in 0..3 {
            room.enter(Waiter(n), at(now, 10)).unwrap();
        }
        assert_eq!(room.call(), Some(Waiter(0)));
        assert_eq!(room.call(), Some(Waiter(1)));
        assert_eq!(room.len(), 1);
    }

    #[test]
    fn a_full_room_refuses_at_once() {
        let (mut room, now) = (WaitingRoom::new(1), crate::clock::now());
        room.enter(Waiter(1), now).unwrap();
        assert_eq!(room.enter(Waiter(2), now), Err(Full));
        room.resize(2);
        assert_eq!(room.enter(Waiter(2), now), Ok(()));
    }

    #[test]
    fn only_those_past_their_deadline_leave() {
        let (mut room, now) = (WaitingRoom::new(9), crate::clock::now());
        room.enter(Waiter(1), at(now, 30)).unwrap();
        room.enter(Waiter(2), at(now, 10)).unwrap();
        assert_eq!(room.next_deadline(), Some(at(now, 10)));
        assert_eq!(room.expire(at(now, 9)), vec![]);
        assert_eq!(room.expire(at(now, 10)), vec![Waiter(2)]);
        assert_eq!(room.clear(), vec![Waiter(1)]);
        assert!(room.is_empty());
    }
}
