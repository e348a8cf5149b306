//! Weighted turns as in LVS and `resty.roundrobin`: each worker takes its own.

use crate::shared::per_thread::PerThread;

/// Members that have their turns by their weights.
pub(super) struct Turns<T> {
    /// Those with a weight.
    members: Vec<(T, u32)>,
    /// The common divisor of the weights, by which the level falls, and the greatest of them, where it begins.
    step: u32,
    greatest: u32,
    turn: PerThread<Turn>,
}

/// Who is next, and the least weight that has a turn in this round.
struct Turn {
    at: usize,
    level: u32,
}

impl<T> Turns<T> {
    /// Turns of members with their weights, beginning anywhere. Those of weight 0 have none.
    pub(super) fn new(mut members: Vec<(T, u32)>) -> Turns<T> {
        members.retain(|(_, weight)| *weight > 0);
        let weights = || members.iter().map(|(_, weight)| *weight);
        let step = weights().reduce(common_divisor).unwrap_or(1);
        let (greatest, len) = (weights().max().unwrap_or(1), members.len());
        let begin = move || Turn { at: fastrand::usize(..len.max(1)), level: greatest };
        Turns { members, step, greatest, turn: PerThread::new(begin) }
    }

    /// Those that have turns, with their weights.
    pub(super) fn members(&self) -> &[(T, u32)] {
        &self.members
    }

    /// Whose turn it is; `None` where nobody has any.
    pub(super) fn next(&self) -> Option<&T> {
        if let [(only, _)] = &self.members[..] {
            return Some(only);
        }
        self.turn.with(|turn| self.take(turn))?
    }

    /// At each level somebody has a turn, so this ends after two rounds at most.
    fn take(&self, turn: &mut Turn) -> Option<&T> {
        for _ in 0..2 * self.members.len() {
            if turn.at >= self.members.len() {
                turn.at = 0;
                turn.level = turn.level.saturating_sub(self.step);
                if turn.level == 0 {
                    turn.level = self.greatest;
                }
            }
            let (member, weight) = self.members.get(turn.at)?;
            turn.at += 1;
            if *weight >= turn.level {
                return Some(member);
            }
        }
        None
    }
}

fn common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[u32], n: usize) -> Vec<usize> {
        let turns = Turns::new(weights.iter().copied().enumerate().collect());
        (0..n).filter_map(|_| turns.next().copied()).collect()
    }

    #[test]
    fn turns_are_by_weight() {
        for (weights, sum) in
            [(&[1, 1][..], 2), (&[3, 2], 5), (&[40, 60], 5), (&[0, 1, 3], 4), (&[7, 0, 1_000_000], 1_000_007)]
        {
            let taken = turns(weights, 2 * sum);
            for (member, weight) in weights.iter().enumerate() {
                let share = taken.iter().filter(|taken| **taken == member).count();
                let divisor = weights.iter().copied().reduce(common_divisor).unwrap_or(1);
                assert_eq!(share, 2 * (*weight / divisor) as usize, "{weights:?}");
            }
        }
        assert_eq!(turns(&[0, 5], 3), [1, 1, 1]);
        assert_eq!(turns(&[0, 0], 3), [0; 0]);
        assert_eq!(turns(&[], 3), [0; 0]);
    }
}
