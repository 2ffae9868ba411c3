//! How much more one endpoint can take than another: weights, as in Envoy's load balancing.
//!
//! A weight is a relative speed. Twice the weight is twice the turns, keys and requests in flight, and
//! the same work counts half. Where all weights are equal there are none: nothing is computed, and every
//! policy ranks exactly as it is described.

/// The weights of a group whose members differ, by place.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    weights: Vec<u16>,
    total: u64,
    mean: f64,
    most: f64,
    /// Turns are this far apart in the row of all weights.
    stride: u64,
}

/// Steps into which a request in flight is divided, so that the speeds of two endpoints show.
const STEPS: f64 = 64.0;
/// 1 / the golden ratio: multiples of it are spread more evenly than those of any other number.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

impl Weights {
    /// `None` if all weights are equal. A weight of 0 is taken for 1.
    pub fn new(weights: Vec<u16>) -> Option<Weights> {
        let weights: Vec<u16> = weights.into_iter().map(|weight| weight.max(1)).collect();
        let first = weights.first().copied()?;
        if weights.iter().all(|weight| *weight == first) {
            return None;
        }
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        let most = weights.iter().max().copied().unwrap_or(first);
        let near = (total as f64 * GOLDEN) as u64;
        let stride = (near..total).find(|stride| coprime(*stride, total));
        Some(Weights {
            mean: total as f64 / weights.len() as f64,
            most: f64::from(most),
            stride: stride.unwrap_or(1),
            total,
            weights,
        })
    }

    fn weight(&self, place: usize) -> u16 {
        self.weights.get(place).copied().unwrap_or(1)
    }

    /// Of a member, as a multiple of the mean.
    pub fn speed(&self, place: usize) -> f64 {
        f64::from(self.weight(place)) / self.mean
    }

    /// The highest [`Weights::speed`].
    pub fn most(&self) -> f64 {
        self.most / self.mean
    }

    /// So many requests at a member, and one more, as they compare with those at others.
    pub fn scaled(&self, place: usize, requests: u32) -> u32 {
        ((f64::from(requests) + 1.0) / self.speed(place) * STEPS) as u32
    }

    /// The score of a member for a key, from its fair score: the higher the weight, the more keys have
    /// their highest score here, and a changed weight moves only keys of that member (weighted
    /// rendezvous hashing; Schindelhauer, Schomaker 2005). In the order of the bits of a float.
    pub fn score(&self, place: usize, fair: u64) -> u64 {
        let fraction = ((fair >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
        (self.speed(place) / -fraction.ln()).to_bits()
    }

    /// The place whose turn it is. In as many turns as the sum of all weights each member has its
    /// weight's number of turns, spread evenly. O(members).
    pub fn in_turn(&self, turn: u64) -> usize {
        // Below 1024 * 2^16 each.
        self.place_at((turn % self.total) * self.stride % self.total)
    }

    /// Distinct places drawn by lot, by weight. O(members) for each.
    pub fn draw(&self, count: usize, mut random: impl FnMut(usize) -> usize) -> Vec<usize> {
        let mut left = Weights {
            weights: self.weights.clone(),
            ..*self
        };
        let count = count.min(self.weights.len());
        let mut drawn = Vec::with_capacity(count);
        while drawn.len() < count {
            let place = left.place_at(random(left.total as usize) as u64);
            if let Some(weight) = left.weights.get_mut(place) {
                left.total -= u64::from(std::mem::take(weight));
            }
            drawn.push(place);
        }
        drawn
    }

    /// Where the row of all weights has this.
    fn place_at(&self, at: u64) -> usize {
        let mut end = 0;
        let holds = |weight: &u16| {
            end += u64::from(*weight);
            at < end
        };
        self.weights.iter().position(holds).unwrap_or_default()
    }
}

fn coprime(a: u64, b: u64) -> bool {
    match b {
        0 => a == 1,
        b => coprime(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::mix;
    use crate::policy::{below, next_random};

    fn weights(weights: &[u16]) -> Weights {
        Weights::new(weights.to_vec()).unwrap()
    }

    #[test]
    fn equal_weights_are_none() {
        assert_eq!(Weights::new(Vec::new()), None);
        assert_eq!(Weights::new(vec![7, 7, 7]), None);
        assert_eq!(Weights::new(vec![0, 1]), None);
    }

    #[test]
    fn turns_are_as_many_as_the_weight_and_spread() {
        let row = [5, 1, 2];
        let weights = weights(&row);
        let places: Vec<usize> = (100..108).map(|turn| weights.in_turn(turn)).collect();
        for (place, weight) in row.iter().enumerate() {
            let turns = places.iter().filter(|it| **it == place).count();
            assert_eq!(turns, usize::from(*weight), "{places:?}");
        }
        let most = places.chunk_by(|a, b| a == b).map(<[usize]>::len).max();
        assert!(most <= Some(2), "{places:?}");
    }

    #[test]
    fn any_part_of_many_turns_is_shared_by_weight() {
        let weights = weights(&[100, 300]);
        for start in 0..400 {
            let second = (start..start + 40).filter(|turn| weights.in_turn(*turn) == 1);
            let second = second.count();
            assert!((28..=32).contains(&second), "{start}: {second}");
        }
    }

    #[test]
    fn keys_and_lots_fall_by_weight() {
        let row = [1, 2, 5];
        let weights = weights(&row);
        let (mut owned, mut drawn, mut random) = ([0; 3], [0; 3], 1);
        for key in 0..8000 {
            let score = |place: &usize| weights.score(*place, mix(key, *place as u64));
            owned[(0..3).max_by_key(score).unwrap()] += 1;
            let draw = weights.draw(2, |bound| below(next_random(&mut random), bound));
            assert_ne!(draw[0], draw[1]);
            drawn[draw[0]] += 1;
        }
        for (place, weight) in row.iter().enumerate() {
            let fair = 1000 * i32::from(*weight);
            for seen in [owned[place], drawn[place]] {
                assert!(
                    (fair - 130..fair + 130).contains(&seen),
                    "{owned:?} {drawn:?}"
                );
            }
        }
    }

    #[test]
    fn a_higher_weight_takes_keys_only_for_itself() {
        let (before, after) = (weights(&[2, 2, 2, 1]), weights(&[2, 2, 4, 1]));
        let owner = |weights: &Weights, key| {
            let score = |place: &usize| weights.score(*place, mix(key, *place as u64));
            (0..4).max_by_key(score).unwrap()
        };
        let moved = (0..4000).filter(|key| owner(&before, *key) != owner(&after, *key));
        let moved: Vec<u64> = moved.collect();
        assert!(moved.len() > 200);
        assert!(moved.iter().all(|key| owner(&after, *key) == 2));
    }

    #[test]
    fn scores_are_in_order_at_both_ends() {
        let weights = weights(&[1, 2]);
        assert!(weights.score(0, 0) < weights.score(0, 1 << 12));
        assert!(weights.score(0, u64::MAX - (1 << 12)) < weights.score(0, u64::MAX));
        assert!(f64::from_bits(weights.score(1, u64::MAX)).is_finite());
    }

    #[test]
    fn as_many_requests_count_less_where_there_is_more_speed() {
        let weights = weights(&[100, 200]);
        assert!(weights.scaled(1, 0) < weights.scaled(0, 0));
        assert_eq!(weights.scaled(1, 3), weights.scaled(0, 1));
        assert_eq!(weights.scaled(0, u32::MAX), u32::MAX);
    }
}
