//! One sort for everything that is not sorted for each request.
//!
//! The standard library's sorts are compiled anew for each type and are made to be fast on long lists; a
//! dozen of them were a twentieth of the module. This one is compiled once and knows positions only. It is a
//! heap sort: O(n log n) comparisons whatever the order was, each a call through a pointer.

use std::cmp::Ordering;

/// The positions `0..len` in the order of what stands there, which `compare` knows. Of equal ones the first
/// comes first.
pub fn sorted(len: usize, compare: &mut dyn FnMut(usize, usize) -> Ordering) -> Vec<usize> {
    let mut heap: Vec<usize> = (0..len).collect();
    for root in (0..len / 2).rev() {
        sift(&mut heap, root, compare);
    }
    for end in (1..len).rev() {
        heap.swap(0, end);
        sift(heap.get_mut(..end).unwrap_or_default(), 0, compare);
    }
    heap
}

/// Sorts a list in place, by `compare`; equal ones stay in their order. O(n log n), 8 bytes for each item.
pub fn sort<T>(items: &mut [T], mut compare: impl FnMut(&T, &T) -> Ordering) {
    let order = sorted(
        items.len(),
        &mut |one, other| match (items.get(one), items.get(other)) {
            (Some(one), Some(other)) => compare(one, other),
            _ => Ordering::Equal,
        },
    );
    arrange(order, &mut |one, other| items.swap(one, other));
}

/// Moves what stands at `order[i]` to `i`, for all of them, by exchanging pairs.
fn arrange(mut order: Vec<usize>, swap: &mut dyn FnMut(usize, usize)) {
    for start in 0..order.len() {
        let mut at = start;
        while let Some(from) = order.get_mut(at) {
            let next = std::mem::replace(from, at);
            if next == start {
                break;
            }
            swap(at, next);
            at = next;
        }
    }
}

fn sift(heap: &mut [usize], mut root: usize, compare: &mut dyn FnMut(usize, usize) -> Ordering) {
    loop {
        let mut largest = root;
        for child in [2 * root + 1, 2 * root + 2] {
            let (Some(one), Some(other)) = (heap.get(largest), heap.get(child)) else {
                break;
            };
            if compare(*one, *other).then(one.cmp(other)).is_lt() {
                largest = child;
            }
        }
        if largest == root {
            return;
        }
        heap.swap(root, largest);
        root = largest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digits of a multiplicative sequence: many equal ones, in no order.
    fn scattered(len: usize) -> Vec<(u32, usize)> {
        let digit = |at: usize| (at as u32).wrapping_mul(2_654_435_761) >> 28;
        (0..len).map(|at| (digit(at), at)).collect()
    }

    #[test]
    fn it_sorts_as_the_standard_library_does() {
        for len in [0, 1, 2, 3, 7, 8, 100, 1000] {
            let mut items = scattered(len);
            let mut expected = items.clone();
            expected.sort_by_key(|item| item.0);
            sort(&mut items, |one, other| one.0.cmp(&other.0));
            assert_eq!(items, expected);
            sort(&mut items, |one, other| other.0.cmp(&one.0));
            expected.sort_by_key(|item| std::cmp::Reverse(item.0));
            assert_eq!(items, expected);
        }
    }

    #[test]
    fn comparisons_stay_few_whatever_the_order_is() {
        for order in [0, 1] {
            let mut count = 0;
            sorted(4096, &mut |one, other| {
                count += 1;
                if order == 0 {
                    one.cmp(&other)
                } else {
                    other.cmp(&one)
                }
            });
            assert!(count < 2 * 12 * 4096 + 2 * 4096, "{count}");
        }
    }
}
