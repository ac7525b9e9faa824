//! Which pair goes first in a turn of one direction: a rate limit that is used up before every pair had
//! its share lets the others go first when it grants again.
//!
//! Pure; knows no pair and no rate.

/// See the module; the first pair begins.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    first: usize,
    /// The first pair of this turn that could pass nothing.
    starved: Option<usize>,
}

impl Rotation {
    /// The pairs below `count`, each once, in the order of this turn.
    pub(super) fn order(&mut self, count: usize) -> impl Iterator<Item = usize> + use<> {
        self.first = self.starved.take().unwrap_or(self.first);
        let first = if self.first < count { self.first } else { 0 };
        (first..count).chain(0..first)
    }

    /// The limit let nothing of this pair pass. The first of which that is said begins the next turn: it
    /// has waited longest.
    pub(super) fn starved(&mut self, pair: usize) {
        self.starved.get_or_insert(pair);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns in each of which the limit grants a share to whoever asks first; returns the shares.
    fn shares(pairs: usize, turns: usize) -> Vec<usize> {
        let mut rotation = Rotation::default();
        let mut shares = vec![0; pairs];
        for _ in 0..turns {
            let mut left = 1;
            for pair in rotation.order(pairs) {
                match left {
                    0 => rotation.starved(pair),
                    _ => {
                        left -= 1;
                        shares[pair] += 1;
                    }
                }
            }
        }
        shares
    }

    #[test]
    fn shares_are_equal() {
        assert_eq!(shares(1, 3), [3]);
        assert_eq!(shares(2, 8), [4, 4]);
        assert_eq!(shares(5, 20), [4; 5]);
    }

    #[test]
    fn a_turn_without_grants_moves_nobody() {
        let mut rotation = Rotation::default();
        let _ = rotation.order(3);
        rotation.starved(1);
        for _ in 0..5 {
            for pair in rotation.order(3) {
                rotation.starved(pair);
            }
        }
        assert!(rotation.order(3).eq([1, 2, 0]));
        assert!(rotation.order(1).eq([0]), "the others are gone");
    }
}
