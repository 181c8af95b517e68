//! A map that never holds more than it may: entries that were not used recently make room (the clock algorithm).

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// A map bounded in entries and in bytes, by what its user says an entry weighs.
#[derive(Debug)]
pub struct Bounded<K, V> {
    slots: HashMap<K, Slot<V>>,
    /// Every key of `slots` once, the next to be looked at for eviction in front.
    hand: VecDeque<K>,
    max_entries: usize,
    max_bytes: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    bytes: usize,
    /// Read since the hand last passed: spared once.
    used: bool,
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    /// An empty map; both bounds are at least one entry.
    pub fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { slots: HashMap::new(), hand: VecDeque::new(), max_entries: max_entries.max(1), max_bytes, bytes: 0 }
    }

    /// The value of a key, which counts as a use of it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let slot = self.slots.get_mut(key)?;
        slot.used = true;
        Some(&mut slot.value)
    }

    /// Sets the value of a key and makes room for it; returns how many other entries went.
    pub fn insert(&mut self, key: K, value: V, bytes: usize) -> u64 {
        self.bytes += bytes;
        match self.slots.insert(key.clone(), Slot { value, bytes, used: false }) {
            Some(replaced) => self.bytes -= replaced.bytes,
            None => self.hand.push_back(key.clone()),
        }
        let mut evicted = 0;
        while (self.slots.len() > self.max_entries || self.bytes > self.max_bytes) && self.slots.len() > 1 {
            evicted += u64::from(self.advance(&key));
        }
        evicted
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Moves the hand by one entry, never evicting `newest`; says whether one went.
    fn advance(&mut self, newest: &K) -> bool {
        let Some(key) = self.hand.pop_front() else { return false };
        match self.slots.get_mut(&key) {
            Some(slot) if slot.used || key == *newest => {
                slot.used = false;
                self.hand.push_back(key);
                false
            }
            _ => {
                let gone = self.slots.remove(&key);
                self.bytes -= gone.as_ref().map_or(0, |slot| slot.bytes);
                gone.is_some()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_not_used_make_room() {
        let mut map = Bounded::new(3, usize::MAX);
        for key in 0..3 {
            assert_eq!(map.insert(key, key * 10, 1), 0);
        }
        assert_eq!(map.get_mut(&0), Some(&mut 0));
        assert_eq!(map.insert(3, 30, 1), 1);
        assert_eq!((map.get_mut(&0).is_some(), map.get_mut(&1).is_some(), map.len()), (true, false, 3));
    }

    #[test]
    fn bytes_are_bounded_and_a_replacement_is_not_counted_twice() {
        let mut map = Bounded::new(100, 10);
        map.insert('a', (), 6);
        map.insert('a', (), 4);
        assert_eq!(map.insert('b', (), 6), 0);
        assert_eq!(map.insert('c', (), 6), 2);
        assert_eq!((map.len(), map.get_mut(&'c').is_some()), (1, true));
        assert_eq!(map.insert('d', (), 100), 1, "one entry beyond the bound is held alone");
        assert!(map.get_mut(&'d').is_some() && !map.is_empty());
    }
}
