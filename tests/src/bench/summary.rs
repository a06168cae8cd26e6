//! Many samples of one quantity in a few numbers.

use serde::Serialize;

/// Which number of a [`Summary`] is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Percentile {
    /// Of batches that ran in turn: what other work on the machine does not shift.
    P10,
    P50,
    P99,
}

/// Percentiles of samples. A quantity that is measured once is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub p10: f64,
    pub p50: f64,
    pub p99: f64,
    pub samples: usize,
}

impl Summary {
    /// `samples` must not be empty.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100];
        Self { p10: at(10), p50: at(50), p99: at(99), samples: sorted.len() }
    }

    /// Something that is measured once.
    pub fn once(value: f64) -> Self {
        Self::of(&[value])
    }

    pub fn get(&self, percentile: Percentile) -> f64 {
        match percentile {
            Percentile::P10 => self.p10,
            Percentile::P50 => self.p50,
            Percentile::P99 => self.p99,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_whatever_their_order() {
        let samples: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        let expected = Summary { p10: 10.0, p50: 50.0, p99: 99.0, samples: 101 };
        assert_eq!(Summary::of(&samples), expected);
    }

    #[test]
    fn one_sample_is_every_percentile() {
        assert_eq!(Summary::once(7.0), Summary { p10: 7.0, p50: 7.0, p99: 7.0, samples: 1 });
    }
}
