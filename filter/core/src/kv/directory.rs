//! Which endpoint an instance of an index service is.
//!
//! Three sources, the first that knows a name counts: the configuration, the endpoints' labels
//! (`kv_instance`), and the service itself, which knows engines by their IP address. An address that
//! several engines share tells nothing. What the service says is believed for [`BELIEVED_US`]; it is
//! asked about one thing at a time, and about the same not again within that time.

use std::cmp::Ordering;
use std::net::IpAddr;

/// How long what the service says of its names is believed.
const BELIEVED_US: u64 = 60_000_000;
/// Names that are remembered of what the service says.
const MOST_NAMES: usize = 1024;

/// Positions by what they are known by, in its order.
pub type Known<K> = Vec<(K, Vec<usize>)>;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Directory {
    /// By configuration and labels.
    given: Known<String>,
    /// Positions of one engine, by its address, if it is the only one there.
    by_ip: Known<IpAddr>,
    /// By the service, with when it said so.
    learned: Vec<(String, IpAddr, u64)>,
    /// When the service was asked for an address, or for all.
    asked: Vec<(Option<IpAddr>, u64)>,
}

/// Adds a position to those of a key.
pub fn add<K: Ord>(known: &mut Known<K>, key: K, position: usize) {
    match known.binary_search_by(|(other, _)| other.cmp(&key)) {
        Ok(at) => {
            if let Some((_, positions)) = known.get_mut(at) {
                positions.push(position);
            }
        }
        Err(at) => known.insert(at, (key, vec![position])),
    }
}

fn find<K>(known: &Known<K>, compare: impl Fn(&K) -> Ordering) -> Option<&[usize]> {
    let at = known.binary_search_by(|(key, _)| compare(key)).ok()?;
    known.get(at).map(|(_, positions)| positions.as_slice())
}

impl Directory {
    /// Takes over the endpoints of a pool: names with their positions, and addresses with theirs.
    pub fn set(&mut self, given: Known<String>, by_ip: Known<IpAddr>) {
        self.given = given;
        self.by_ip = by_ip;
    }

    /// Positions of an instance; one for each of its ranks.
    pub fn find(&self, instance: &str) -> &[usize] {
        let given = find(&self.given, |name| name.as_str().cmp(instance));
        let learned = || {
            let mut learned = self.learned.iter();
            let (_, ip, _) = learned.find(|(name, ..)| name == instance)?;
            find(&self.by_ip, |other| other.cmp(ip))
        };
        given.or_else(learned).unwrap_or_default()
    }

    /// The service says where an instance is.
    pub fn learn(&mut self, instance: String, ip: IpAddr, now_us: u64) {
        self.learned
            .retain(|(name, _, told_us)| *name != instance && is_fresh(*told_us, now_us));
        if self.learned.len() < MOST_NAMES {
            self.learned.push((instance, ip, now_us));
        }
    }

    /// An address of which the service has not been asked what runs there, to be asked now.
    pub fn unasked(&mut self, now_us: u64) -> Option<IpAddr> {
        self.asked
            .retain(|(_, asked_us)| is_fresh(*asked_us, now_us));
        let asked = |ip: &IpAddr| self.asked.iter().any(|(other, _)| *other == Some(*ip));
        let mut open = self.by_ip.iter().map(|(ip, _)| ip).filter(|ip| !asked(ip));
        let ip = open.next().copied()?;
        self.asked.push((Some(ip), now_us));
        Some(ip)
    }

    /// Whether the service has not been asked for all its instances, which it is to be now.
    pub fn ask_all(&mut self, now_us: u64) -> bool {
        self.asked
            .retain(|(_, asked_us)| is_fresh(*asked_us, now_us));
        let open = self.asked.iter().all(|(ip, _)| ip.is_some()) && !self.by_ip.is_empty();
        if open {
            self.asked.push((None, now_us));
        }
        open
    }
}

fn is_fresh(told_us: u64, now_us: u64) -> bool {
    let age_us = now_us.checked_sub(told_us);
    age_us.is_some_and(|age_us| age_us < BELIEVED_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn directory() -> Directory {
        let mut directory = Directory::default();
        let given = vec![("a".to_owned(), vec![0, 1])];
        let mut by_ip = Vec::new();
        for (at, position) in [(2, 2), (1, 0), (1, 1)] {
            add(&mut by_ip, ip(at), position);
        }
        directory.set(given, by_ip);
        directory
    }

    #[test]
    fn what_is_given_counts_more_than_what_the_service_says() {
        let mut directory = directory();
        assert_eq!(directory.find("b"), &[] as &[usize]);
        for (name, at) in [("a", 2), ("b", 2), ("c", 9)] {
            directory.learn(name.to_owned(), ip(at), 1000);
        }
        assert_eq!(directory.find("a"), [0, 1]);
        assert_eq!(directory.find("b"), [2]);
        assert_eq!(directory.find("c"), &[] as &[usize]);
    }

    #[test]
    fn nothing_is_asked_twice_within_a_minute() {
        let mut directory = directory();
        let mut asked = vec![directory.unasked(1000), directory.unasked(1001)];
        asked.sort();
        assert_eq!(asked, [Some(ip(1)), Some(ip(2))]);
        assert_eq!(directory.unasked(1002), None);
        assert!(directory.ask_all(1003) && !directory.ask_all(1004));
        assert!(directory.unasked(BELIEVED_US + 2000).is_some());
    }

    #[test]
    fn without_addresses_there_is_nothing_to_ask() {
        let mut directory = Directory::default();
        assert_eq!(directory.unasked(1000), None);
        assert!(!directory.ask_all(1000));
    }
}
